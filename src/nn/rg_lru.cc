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

// sqrt(1 - decay^2), which keeps the size of the state; the very first token of
// all (`fresh`) is taken as it is. log_decay [B, L, C].
mx::array feed_factor(const mx::array& log_decay, bool fresh) {
  const auto dtype = log_decay.dtype();
  auto squared = mx::exp(mx::multiply(mx::array(2.0f, dtype), log_decay));
  if (fresh) {
    auto others = mx::greater(mx::arange(log_decay.shape(1)), mx::array(0));
    squared =
        mx::multiply(squared, mx::expand_dims(mx::astype(others, dtype), -1));
  }
  return mx::sqrt(mx::subtract(mx::array(1.0f, dtype), squared));
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
  auto gated = mx::multiply(x, head_gate(x, p.input_gate, p.input_gate_bias));
  auto h =
      state.carry(1,
                  {x.shape(0), x.shape(2)},
                  {gated, log_decay},
                  [](auto inputs, const mx::array& before, bool fresh) {
                    return kernels::table().decayed_sum(
                        mx::multiply(inputs[0], feed_factor(inputs[1], fresh)),
                        mx::exp(inputs[1]),
                        before);
                  });

  return finish(
      mx::multiply(h,
                   kernels::activate(made[1], kernels::Activation::gelu_tanh)),
      p.out,
      residual);
}

}  // namespace mlxlm::nn
