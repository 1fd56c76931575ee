// The seam on NVIDIA GPUs; what the kernels don't cover goes to the reference.
#include <algorithm>

#include <mlx/backend/cuda/cuda.h>
#include <mlx/mlx.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/heads.h"
#include "kernels/cuda/logits.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/wide.h"
#include "kernels/reference.h"
#include "kernels/shapes.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace cuda {
namespace {

// Rows from which weights that the kernels here don't take are expanded for a
// dense product. From 192 on that is faster than MLX's quantized product (an
// H100, 14336 x 4096, 4 bits); for fewer it saves the 40 seconds that MLX's
// compiles for at its first use.
constexpr std::size_t kManyRows = 17;

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

using Linears = std::span<const Linear* const>;

// Whether one call can do all: same format, few matrices.
template <class Suits>
bool suit_together(const mx::array& x, Linears linears, const Suits& suits) {
  return linears.size() <= 3 &&
         std::all_of(linears.begin(), linears.end(), [&](const Linear* each) {
           return suits(x, *each) && each->bits == linears[0]->bits &&
                  each->group_size == linears[0]->group_size &&
                  each->mode == linears[0]->mode;
         });
}

// Which of the kernels multiplies.
enum class Kernel { none, few_rows, many_rows };

Kernel kernel_for(const mx::array& x, Linears linears) {
  // Measured on an H100 over the shapes of an 8B llama.
  constexpr std::size_t kManyRowsFrom = 8;
  if (num_rows_of(x) >= kManyRowsFrom &&
      suit_together(x, linears, suits_many_rows)) {
    return Kernel::many_rows;
  }
  return suit_together(x, linears, suits_few_rows) ? Kernel::few_rows
                                                   : Kernel::none;
}

std::vector<mx::array> multiplied(Kernel kernel,
                                  const mx::array& x,
                                  const Norm* norm,
                                  Linears linears,
                                  const mx::array* residual,
                                  float scale) {
  return kernel == Kernel::many_rows
             ? many_rows_linear(x, norm, linears, residual, scale)
             : few_rows_linear(x, norm, linears, residual, scale);
}

std::vector<mx::array> norm_linear(const mx::array& x,
                                   const Norm* norm,
                                   Linears linears) {
  if (const auto kernel = kernel_for(x, linears); kernel != Kernel::none) {
    const auto input = normalized(x, norm);
    return multiplied(kernel, input, norm, linears, nullptr, 1.0f);
  }
  std::vector<mx::array> results;
  const auto n = norm != nullptr ? reference_table().norm(x, *norm) : x;
  for (const Linear* each : linears) {
    const Linear* const one[] = {each};
    if (const auto kernel = kernel_for(x, one); kernel != Kernel::none) {
      results.push_back(multiplied(kernel, n, nullptr, one, nullptr, 1.0f)[0]);
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
  const auto kernel = kernel_for(x, one);
  if (kernel != Kernel::none && post_norm == nullptr &&
      (residual == nullptr || residual->dtype() == x.dtype()) &&
      (residual != nullptr || scale == 1.0f)) {
    return multiplied(kernel, x, nullptr, one, residual, scale)[0];
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
    if (const auto kernel = kernel_for(x, both); kernel != Kernel::none) {
      const auto input = normalized(x, norm);
      return kernel == Kernel::many_rows
                 ? many_rows_gated(input, norm, *gate, up, activation)
                 : few_rows_gated(input, norm, *gate, up, activation);
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
    table.norm_heads = cuda::norm_heads;
    table.log_softmax = cuda::log_softmax;
    table.argmax = cuda::argmax;
    table.append_attention = cuda::append_attention;
    table.append_rows = cuda::append_rows;
    table.head = cuda::head;
    return table;
  }();
  return kTable;
}

bool cuda_table_usable() {
  return mx::default_device() == mx::Device::gpu && mx::cu::is_available();
}

}  // namespace mlxlm::kernels
