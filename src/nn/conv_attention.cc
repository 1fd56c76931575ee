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
  return state.carry(
      index,
      held,
      {x},
      [&](auto inputs, const mx::array& before, bool) {
        auto [y, after] = kernels::table().causal_conv(
            inputs[0], conv, mx::reshape(before, {rows, 1, x.shape(2)}));
        return kernels::Scanned{y, mx::reshape(after, held)};
      },
      x.dtype());
}

mx::array ConvAttention::operator()(const MixerInput& input,
                                    const Residual& residual) const {
  const auto& p = parts_;
  const int tokens = input.x.shape(1);
  const auto arrays = cache_part(input.cache, 0, 2);
  const auto attended = cache_part(input.cache, 1, 2);
  const RecurrentState state(arrays.get());
  const kernels::Linear* const linears[] = {&p.q, &p.k, &p.v};
  auto made = project(input, linears);
  const auto turn = p.rope->at(tokens, input.runs[0].offset);
  auto in_heads = [&](const mx::array& x, int num_heads, bool turned) {
    return kernels::table().norm_rope(
        x, num_heads, nullptr, turned ? &turn : nullptr, input.runs);
  };
  auto q = in_heads(made[0], p.num_heads, true);
  auto k = in_heads(mix(made[1], p.k_conv, state, 0), p.num_kv_heads, true);
  auto v = in_heads(mix(made[2], p.v_conv, state, 1), p.num_kv_heads, false);
  auto heads = attended ? attended->attend(q, k, v, p.spec)
                        : attend_without_cache(q, k, v, p.spec);
  return finish(in_token_order(heads), p.out, residual);
}

}  // namespace mlxlm::nn
