#include "kernels/cpu/bind.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "kernels/cpu/thread_pool.h"

namespace mlxlm::kernels::cpu {
namespace {

bool lies_in_rows(const mx::array& x) {
  std::int64_t expected = 1;
  for (int axis = static_cast<int>(x.ndim()) - 1; axis >= 0; --axis) {
    if (x.shape(axis) != 1 && x.strides(axis) != expected) {
      return false;
    }
    expected *= x.shape(axis);
  }
  return true;
}

// Appends the elements of x from `axis` on, in row-major order.
template <class T>
void copy_elements(const mx::array& x,
                   int axis,
                   const T* from,
                   std::vector<float>& out) {
  if (axis == static_cast<int>(x.ndim())) {
    out.push_back(static_cast<float>(*from));
    return;
  }
  for (int i = 0; i < x.shape(axis); ++i) {
    copy_elements(x, axis + 1, from + i * x.strides(axis), out);
  }
}

// Rows from which handing them out pays.
constexpr std::size_t kManyRows = 16;

}  // namespace

Rows::Rows(const mx::array& x) : data_(x.data<float>()) {
  const bool half = x.dtype() == mx::float16;
  if (!half && lies_in_rows(x)) return;
  copy_.reserve(x.size());
  if (half) {
    copy_elements(x, 0, x.data<mx::float16_t>(), copy_);
  } else {
    copy_elements(x, 0, data_, copy_);
  }
  data_ = copy_.data();
}

BoundNorm::BoundNorm(const Norm& norm, std::vector<mx::array>& inputs)
    : kind_(norm.kind), eps_(norm.eps) {
  auto add = [&](const std::optional<mx::array>& x) {
    std::optional<std::size_t> place;
    if (x) {
      place = inputs.size();
      inputs.push_back(mx::astype(*x, mx::float32));
    }
    return place;
  };
  weight_ = add(norm.weight);
  bias_ = add(norm.bias);
}

void BoundNorm::apply(std::span<const mx::array> inputs,
                      const float* x,
                      std::size_t num_rows,
                      int size,
                      float* y) const {
  std::optional<Rows> weight;
  std::optional<Rows> bias;
  if (weight_) weight.emplace(inputs[*weight_]);
  if (bias_) bias.emplace(inputs[*bias_]);
  const float* w = weight ? weight->data() : nullptr;
  const float* b = bias ? bias->data() : nullptr;
  const IsaKernels& isa = isa_kernels();
  auto one = [&](std::size_t row) {
    const float* from = x + row * size;
    float* to = y + row * size;
    if (kind_ == NormKind::rms) {
      isa.rms_norm(from, size, w, eps_, to);
    } else {
      isa.layer_norm(from, size, w, b, eps_, to);
    }
  };
  if (num_rows < kManyRows) {
    for (std::size_t row = 0; row < num_rows; ++row) one(row);
    return;
  }
  parallel_for(static_cast<int>((num_rows + kManyRows - 1) / kManyRows),
               [&](int i) {
                 std::size_t end = std::min((i + 1) * kManyRows, num_rows);
                 for (std::size_t row = i * kManyRows; row < end; ++row) {
                   one(row);
                 }
               });
}

std::optional<BoundNorm> bind(const Norm* norm,
                              std::vector<mx::array>& inputs) {
  if (norm == nullptr) return std::nullopt;
  return BoundNorm(*norm, inputs);
}

bool suits(const mx::array& x, std::span<const Linear* const> linears) {
  return x.dtype() == mx::float32 &&
         std::all_of(linears.begin(), linears.end(), [](const Linear* l) {
           return l->plain();
         });
}

GateFunction gate_function(Activation activation) {
  switch (activation) {
    case Activation::silu:
      return GateFunction::silu;
    case Activation::gelu:
      return GateFunction::gelu;
    case Activation::gelu_tanh:
      return GateFunction::gelu_tanh;
    case Activation::gelu_fast:
      return GateFunction::gelu_fast;
    case Activation::relu:
      return GateFunction::relu;
    case Activation::relu_squared:
      return GateFunction::relu_squared;
  }
  return GateFunction::silu;
}

}  // namespace mlxlm::kernels::cpu
