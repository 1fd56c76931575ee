#include "kernels/composite.h"

#include <mlx/mlx.h>

#include "kernels/shapes.h"

namespace mlxlm::kernels {
namespace composite {

std::vector<mx::array> norm_heads(const Table& table,
                                  const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions) {
  std::vector<const Linear*> linears;
  for (const auto& each : projections) linears.push_back(each.linear);
  auto made = table.norm_linear(x, norm, linears);
  for (std::size_t i = 0; i < made.size(); ++i) {
    const auto& p = projections[i];
    made[i] = table.norm_rope(made[i], p.num_heads, p.norm, p.rope, positions);
  }
  return made;
}

AppendedAttention append_attention(const Table& table,
                                   const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters) {
  auto all_keys = with_tokens(keys, k, at);
  auto all_values = with_tokens(values, v, at);
  return {table.attention(q,
                          tokens_of(all_keys, 0, num_keys),
                          tokens_of(all_values, 0, num_keys),
                          parameters),
          all_keys,
          all_values};
}

mx::array finish_layer(const Table& table,
                       const mx::array& heads,
                       const mx::array& x,
                       const LayerEnd& end) {
  auto rows = x.shape(1) > 1 ? mx::transpose(heads, {0, 2, 1, 3}) : heads;
  rows = mx::reshape(rows, {x.shape(0), x.shape(1), -1});
  auto h = table.linear_residual(rows, *end.out, end.out_norm, &x, end.scale);
  auto hidden =
      table.norm_gated_mlp(h, end.mlp_norm, end.gate, *end.up, end.activation);
  return table.linear_residual(hidden, *end.down, end.down_norm, &h, end.scale);
}

}  // namespace composite

std::vector<mx::array> norm_heads(const Table& table,
                                  const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions) {
  return table.norm_heads != nullptr
             ? table.norm_heads(x, norm, projections, positions)
             : composite::norm_heads(table, x, norm, projections, positions);
}

AppendedAttention append_attention(const Table& table,
                                   const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters) {
  return table.append_attention != nullptr
             ? table.append_attention(
                   q, k, v, keys, values, at, num_keys, parameters)
             : composite::append_attention(
                   table, q, k, v, keys, values, at, num_keys, parameters);
}

mx::array to_half(const Table& table, const mx::array& x) {
  if (table.to_half != nullptr) return table.to_half(x);
  const mx::array largest(65504.0f);
  return mx::astype(mx::clip(x, mx::negative(largest), largest), mx::float16);
}

mx::array concatenate_tokens(const Table& table,
                             const std::vector<mx::array>& parts) {
  return table.concatenate_tokens != nullptr ? table.concatenate_tokens(parts)
                                             : mx::concatenate(parts, 2);
}

mx::array finish_layer(const Table& table,
                       const mx::array& heads,
                       const mx::array& x,
                       const LayerEnd& end) {
  return table.finish_layer != nullptr
             ? table.finish_layer(heads, x, end)
             : composite::finish_layer(table, heads, x, end);
}

}  // namespace mlxlm::kernels
