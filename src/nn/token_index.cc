#include "nn/token_index.h"

#include <cmath>
#include <limits>

#include <mlx/mlx.h>

#include "cache/attention_cache.h"

namespace mlxlm::nn {

mx::array append_index_keys(const mx::array& keys,
                            const mx::array& values,
                            Cache* cache) {
  if (cache == nullptr) return keys;
  auto& rows = dynamic_cast<AttentionCache&>(*cache);
  return rows.update(keys, values).keys.restored();
}

std::optional<mx::array> TokenIndex::operator()(const mx::array& x,
                                                const mx::array& q_input,
                                                Cache* cache) const {
  const auto& table = kernels::table();
  const int offset = cache != nullptr ? cache->offset() : 0;
  const auto turn = rope->at(x.shape(1), offset);
  auto project = [&](const mx::array& from, const kernels::Linear& linear) {
    return table.linear_residual(from, linear, nullptr, nullptr, 1.0f);
  };
  auto new_keys = table.norm_rope(project(x, k), 1, &k_norm, &turn, offset);
  auto keys = append_index_keys(new_keys, mx::zeros_like(new_keys), cache);
  const int num_keys = keys.shape(2);
  if (num_keys <= num_tokens) return std::nullopt;

  auto queries =
      table.norm_rope(project(q_input, q), num_heads, nullptr, &turn, offset);
  auto scores = mx::maximum(mx::matmul(queries, mx::swapaxes(keys, -1, -2)),
                            mx::array(0.0f, keys.dtype()));
  const float scale = 1 / std::sqrt(float(num_heads) * keys.shape(3));
  auto weights = mx::multiply(project(x, weight), mx::array(scale, x.dtype()));
  weights = mx::expand_dims(mx::swapaxes(weights, -1, -2), -1);  // [B, H, L, 1]
  scores = mx::sum(mx::multiply(scores, weights), 1, /*keepdims=*/true);
  auto causal = kernels::causal_mask(x.shape(1), num_keys, offset);
  scores = mx::where(
      causal,
      scores,
      mx::array(-std::numeric_limits<float>::infinity(), scores.dtype()));
  auto order = mx::argpartition(scores, num_keys - num_tokens, -1);
  auto begin = mx::Shape(4, 0);
  begin.back() = num_keys - num_tokens;
  auto chosen = mx::slice(order, begin, order.shape());
  auto visible = mx::put_along_axis(
      mx::zeros(scores.shape(), mx::bool_), chosen, mx::array(true), -1);
  return mx::logical_and(visible, causal);
}

}  // namespace mlxlm::nn
