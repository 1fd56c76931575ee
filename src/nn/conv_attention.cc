#include "nn/conv_attention.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/kv_cache.h"
#include "cache/mask.h"
#include "cache/rotating_cache.h"

namespace mlxlm::nn {

CachePtr ConvAttention::make_cache() const {
  const int window = parts_.spec.window_tokens;
  return make_cache_list(
      {make_arrays_cache(2),
       window > 0 ? make_rotating_cache(window) : make_kv_cache()});
}

// x [B, L, Hkv * Dh] -> as x.
mx::array ConvAttention::mix(const mx::array& x,
                             const kernels::CausalConv& conv,
                             const RecurrentState& state,
                             std::size_t index) const {
  const int rows = x.shape(0);
  const int heads = parts_.num_kv_heads;
  const mx::Shape held{rows, heads, 1, x.shape(2) / heads};
  auto before = state.get(index, held, x.dtype());
  auto [y, after] = kernels::table().causal_conv(
      x, conv, mx::reshape(before, {rows, 1, x.shape(2)}));
  state.set(index, mx::reshape(mx::astype(after, x.dtype()), held));
  return y;
}

mx::array ConvAttention::operator()(const MixerInput& input,
                                    const Residual& residual) const {
  const auto& p = parts_;
  const int tokens = input.x.shape(1);
  auto* caches = cache_list(input.cache, 2);
  const RecurrentState state(caches != nullptr ? (*caches)[0].get() : nullptr);
  const kernels::Linear* const linears[] = {&p.q, &p.k, &p.v};
  auto made = project(input, linears);
  const auto turn = p.rope->at(tokens, input.position);
  auto in_heads = [&](const mx::array& x, int num_heads, bool turned) {
    return kernels::table().norm_rope(
        x, num_heads, nullptr, turned ? &turn : nullptr, input.position);
  };
  auto q = in_heads(made[0], p.num_heads, true);
  auto k = in_heads(mix(made[1], p.k_conv, state, 0), p.num_kv_heads, true);
  auto v = in_heads(mix(made[2], p.v_conv, state, 1), p.num_kv_heads, false);
  auto heads = caches != nullptr ? (*caches)[1]->attend(q, k, v, p.spec)
                                 : attend_without_cache(q, k, v, p.spec);
  return finish(in_token_order(heads), p.out, residual);
}

}  // namespace mlxlm::nn
