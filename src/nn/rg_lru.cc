#include "nn/rg_lru.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {
namespace {

// sigmoid(x w + b) head by head. x [B, L, H * Dh] -> as x.
mx::array head_gate(const mx::array& x,
                    const mx::array& weight,
                    const mx::array& bias) {
  auto heads = mx::reshape(
      x, {x.shape(0), x.shape(1), weight.shape(0), weight.shape(1)});
  auto y = mx::swapaxes(mx::matmul(mx::swapaxes(heads, 1, 2), weight), 1, 2);
  return mx::reshape(mx::sigmoid(mx::add(y, bias)), x.shape());
}

// 0 for the first of `num_tokens`, else 1: [num_tokens, 1].
mx::array all_but_first(int num_tokens, mx::Dtype dtype) {
  return mx::expand_dims(
      mx::astype(mx::greater(mx::arange(num_tokens), mx::array(0)), dtype), -1);
}

}  // namespace

CachePtr RgLru::make_cache() const { return make_arrays_cache(2); }

mx::array RgLru::operator()(const MixerInput& input,
                            const Residual& residual) const {
  const auto& p = parts_;
  const kernels::Linear* const linears[] = {&p.x, &p.y};
  auto made = project(input, linears);
  const RecurrentState state(input.cache);
  auto x = state.convolve(0, made[0], p.conv);

  auto log_decay = mx::multiply(
      head_gate(x, p.recurrent_gate, p.recurrent_gate_bias), p.rate);
  auto squared = mx::exp(mx::multiply(mx::array(2.0f, x.dtype()), log_decay));
  // The very first token is taken as it is.
  if (state.empty(1)) {
    squared = mx::multiply(squared, all_but_first(x.shape(1), squared.dtype()));
  }
  auto factor = mx::sqrt(mx::subtract(mx::array(1.0f, x.dtype()), squared));
  auto fed = mx::multiply(
      mx::multiply(x, head_gate(x, p.input_gate, p.input_gate_bias)), factor);
  auto [h, after] = kernels::table().decayed_sum(
      fed, mx::exp(log_decay), state.get(1, {x.shape(0), x.shape(2)}));
  state.set(1, after);

  return finish(
      mx::multiply(h,
                   kernels::activate(made[1], kernels::Activation::gelu_tanh)),
      p.out,
      residual);
}

}  // namespace mlxlm::nn
