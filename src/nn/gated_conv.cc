#include "nn/gated_conv.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {
namespace {

// x [B, L, H * Dh], each head normalized.
mx::array norm_heads(const mx::array& x,
                     int num_heads,
                     const kernels::Norm& norm) {
  auto heads = mx::unflatten(x, -1, {num_heads, -1});
  return mx::flatten(kernels::table().norm(heads, norm), -2, -1);
}

// [B, L, Hkv * Dh] -> [B, L, H * Dh], each head for its group.
mx::array for_group(const mx::array& x, int num_heads, int num_kv_heads) {
  if (num_heads == num_kv_heads) return x;
  auto heads = mx::unflatten(x, -1, {num_kv_heads, -1});
  return mx::flatten(mx::repeat(heads, num_heads / num_kv_heads, -2), -2, -1);
}

}  // namespace

mx::array GatedConv::operator()(const MixerInput& input,
                                const Residual& residual) const {
  const kernels::Linear* const linears[] = {&w_.q, &w_.k, &w_.v};
  auto made = project(input, linears);
  const RecurrentState state(input.cache);
  auto queries = norm_heads(made[0], w_.num_heads, w_.q_norm);
  auto keys = state.convolve(
      0, norm_heads(made[1], w_.num_kv_heads, w_.k_norm), w_.k_conv);
  auto values = state.convolve(1, made[2], w_.v_conv);
  auto spread = [&](const mx::array& x) {
    return for_group(x, w_.num_heads, w_.num_kv_heads);
  };
  auto gate = mx::sigmoid(mx::multiply(queries, spread(keys)));
  return finish(mx::multiply(gate, spread(values)), w_.o, residual);
}

CachePtr GatedConv::make_cache() const { return make_arrays_cache(2); }

}  // namespace mlxlm::nn
