// The seam on NVIDIA GPUs; what the kernels don't cover goes to the reference.
#include <algorithm>

#include <mlx/backend/cuda/cuda.h>
#include <mlx/mlx.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/matmul.h"
#include "kernels/reference.h"
#include "kernels/shapes.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace cuda {
namespace {

// Rows from which expanding the weights for a dense product is faster: measured
// on an H100, 14336 x 4096, 4 bits.
constexpr std::size_t kManyRows = 192;

bool is_plain_rms(const Norm& norm, const mx::array& x) {
  // In float16 x times the weight, not yet divided, may overflow.
  return norm.kind == NormKind::rms && norm.weight && x.dtype() == mx::bfloat16;
}

// Takes the norm out of the kernel's hands where it can't do it.
mx::array normalized(const mx::array& x, const Norm*& norm) {
  if (norm == nullptr || is_plain_rms(*norm, x)) return x;
  return reference_table().norm(x, *std::exchange(norm, nullptr));
}

bool expanding_pays(const mx::array& x, const Linear& linear) {
  return linear.quantized() && linear.weight.ndim() == 2 && linear.plain() &&
         x.dtype() != mx::float32 && num_rows_of(x) >= kManyRows;
}

Linear expanded(const mx::array& x, const Linear& linear) {
  Linear dense{mx::dequantize(linear.weight,
                              *linear.scales,
                              linear.zeros,
                              linear.group_size,
                              linear.bits,
                              linear.mode,
                              std::nullopt,
                              x.dtype())};
  dense.bias = linear.bias;
  return dense;
}

const Linear& expanded_if(const mx::array& x,
                          const Linear& linear,
                          Linear& room) {
  if (!expanding_pays(x, linear)) return linear;
  room = expanded(x, linear);
  return room;
}

// Whether one call can do all: same format, few matrices.
bool suit_together(const mx::array& x, std::span<const Linear* const> linears) {
  return linears.size() <= 3 &&
         std::all_of(linears.begin(), linears.end(), [&](const Linear* each) {
           return suits_few_rows(x, *each) && each->bits == linears[0]->bits &&
                  each->group_size == linears[0]->group_size;
         });
}

std::vector<mx::array> norm_linear(const mx::array& x,
                                   const Norm* norm,
                                   std::span<const Linear* const> linears) {
  if (suit_together(x, linears)) {
    const auto input = normalized(x, norm);
    return few_rows_linear(input, norm, linears, nullptr, 1.0f);
  }
  std::vector<mx::array> results;
  const auto n = norm != nullptr ? reference_table().norm(x, *norm) : x;
  for (const Linear* each : linears) {
    const Linear* const one[] = {each};
    if (suit_together(x, one)) {
      results.push_back(few_rows_linear(n, nullptr, one, nullptr, 1.0f)[0]);
    } else {
      Linear room{mx::array(0.0f)};
      results.push_back(reference::linear(n, expanded_if(n, *each, room)));
    }
  }
  return results;
}

mx::array linear_residual(const mx::array& x,
                          const Linear& linear,
                          const Norm* post_norm,
                          const mx::array* residual,
                          float scale) {
  const Linear* const one[] = {&linear};
  if (suit_together(x, one) && post_norm == nullptr &&
      (residual == nullptr || residual->dtype() == x.dtype()) &&
      (residual != nullptr || scale == 1.0f)) {
    return few_rows_linear(x, nullptr, one, residual, scale)[0];
  }
  Linear room{mx::array(0.0f)};
  return reference_table().linear_residual(
      x, expanded_if(x, linear, room), post_norm, residual, scale);
}

mx::array norm_gated_mlp(const mx::array& x,
                         const Norm* norm,
                         const Linear* gate,
                         const Linear& up,
                         Activation activation) {
  if (gate != nullptr) {
    const Linear* const both[] = {gate, &up};
    if (suit_together(x, both)) {
      const auto input = normalized(x, norm);
      return few_rows_gated(input, norm, *gate, up, activation);
    }
  }
  Linear gate_room{mx::array(0.0f)};
  Linear up_room{mx::array(0.0f)};
  return reference_table().norm_gated_mlp(
      x,
      norm,
      gate != nullptr ? &expanded_if(x, *gate, gate_room) : nullptr,
      expanded_if(x, up, up_room),
      activation);
}

mx::array attention(const mx::array& q,
                    const mx::array& k,
                    const mx::array& v,
                    const AttentionParameters& parameters) {
  if (suits_decode(q, k, v, parameters)) {
    return decode_attention(q, k, v, parameters);
  }
  return reference_table().attention(q, k, v, parameters);
}

mx::array head(const mx::array& x, const Norm* norm, const Linear& linear) {
  const Linear* const one[] = {&linear};
  return norm_linear(x, norm, one)[0];
}

}  // namespace
}  // namespace cuda

const Table& cuda_table() {
  static const Table kTable = [] {
    Table table = reference_table();
    table.name = "cuda";
    table.norm_linear = cuda::norm_linear;
    table.linear_residual = cuda::linear_residual;
    table.norm_gated_mlp = cuda::norm_gated_mlp;
    table.attention = cuda::attention;
    table.head = cuda::head;
    return table;
  }();
  return kTable;
}

bool cuda_table_usable() {
  return mx::default_device() == mx::Device::gpu && mx::cu::is_available();
}

}  // namespace mlxlm::kernels
