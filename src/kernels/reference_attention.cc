// Attention in plain MLX: the fused operation where it applies, else its steps.
#include <limits>

#include <mlx/mlx.h>

#include "kernels/reference.h"

namespace mlxlm::kernels {
namespace {

// Query heads in groups that share a key head, so that keys and values are
// broadcast and not repeated: [B, H, L, D] -> [B, Hkv, H / Hkv, L, D].
mx::array group_heads(const mx::array& q, int num_kv_heads) {
  return mx::reshape(q,
                     {q.shape(0),
                      num_kv_heads,
                      q.shape(1) / num_kv_heads,
                      q.shape(2),
                      q.shape(3)});
}

mx::array ungroup_heads(const mx::array& x) { return mx::flatten(x, 1, 2); }

mx::array lowest(mx::Dtype dtype) {
  // The value of numpy's finfo(dtype).min.
  if (dtype == mx::float16) return mx::array(-65504.0f, dtype);
  if (dtype == mx::bfloat16) return mx::array(-3.38953139e38f, dtype);
  return mx::array(std::numeric_limits<float>::lowest(), dtype);
}

// A mask for [B, H, L, T] made fit for [B, Hkv, H / Hkv, L, T].
mx::array group_mask(const mx::array& mask, const mx::array& scores) {
  if (mask.ndim() < 3) return mask;
  if (mask.ndim() == 3 || mask.shape(1) == 1) return mx::expand_dims(mask, -3);
  return mx::unflatten(mask, 1, {scores.shape(1), scores.shape(2)});
}

mx::array masked(const mx::array& scores,
                 const AttentionParameters& parameters) {
  const int queries = scores.shape(-2);
  const int keys = scores.shape(-1);
  std::optional<mx::array> mask;
  if (parameters.mask) {
    mask = group_mask(*parameters.mask, scores);
  } else if (parameters.causal && queries > 1) {
    mask = causal_mask(queries, keys, keys - queries);
  }
  if (!mask) return scores;
  if (mask->dtype() == mx::bool_) {
    return mx::where(*mask, scores, lowest(scores.dtype()));
  }
  return mx::add(scores, mx::astype(*mask, scores.dtype()));
}

// Scores [B, Hkv, H / Hkv, L, T], already scaled -> probabilities.
mx::array probabilities(mx::array scores,
                        const AttentionParameters& parameters) {
  if (parameters.softcap != 0.0f) {
    mx::array cap(parameters.softcap, scores.dtype());
    scores = mx::multiply(mx::tanh(mx::divide(scores, cap)), cap);
  }
  scores = masked(scores, parameters);
  const std::vector<int> last{-1};
  if (!parameters.sinks) return mx::softmax(scores, last, /*precise=*/true);
  auto sinks = mx::reshape(mx::astype(*parameters.sinks, scores.dtype()),
                           {1, scores.shape(1), scores.shape(2), 1, 1});
  auto column_shape = scores.shape();
  column_shape.back() = 1;
  auto all =
      mx::concatenate({mx::broadcast_to(sinks, column_shape), scores}, -1);
  all = mx::softmax(all, last, /*precise=*/true);
  return mx::split(all, mx::Shape{1}, -1)[1];
}

mx::array scaled_groups(const mx::array& q, int num_kv_heads, float scale) {
  return group_heads(mx::multiply(q, mx::array(scale, q.dtype())),
                     num_kv_heads);
}

}  // namespace

namespace reference {

mx::array attention(const mx::array& q,
                    const mx::array& k,
                    const mx::array& v,
                    const AttentionParameters& parameters) {
  auto key = mx::astype(k, q.dtype());
  auto value = mx::astype(v, q.dtype());
  if (parameters.softcap == 0.0f) {
    auto mask = parameters.mask;
    if (mask && mask->dtype() != mx::bool_) mask = mx::astype(*mask, q.dtype());
    auto sinks = parameters.sinks;
    if (sinks) sinks = mx::astype(*sinks, q.dtype());
    const bool causal = parameters.causal && !mask && q.shape(2) > 1;
    return mx::fast::scaled_dot_product_attention(
        q, key, value, parameters.scale, causal ? "causal" : "", mask, sinks);
  }
  auto grouped = scaled_groups(q, k.shape(1), parameters.scale);
  auto scores =
      mx::matmul(grouped, mx::swapaxes(mx::expand_dims(key, 2), -1, -2));
  return ungroup_heads(
      mx::matmul(probabilities(scores, parameters), mx::expand_dims(value, 2)));
}

mx::array quantized_attention(const mx::array& q,
                              const QuantizedTensor& k,
                              const QuantizedTensor& v,
                              const AttentionParameters& parameters) {
  auto product =
      [&](const mx::array& x, const QuantizedTensor& t, bool transpose) {
        return mx::astype(mx::quantized_matmul(x,
                                               mx::expand_dims(t.data, 2),
                                               mx::expand_dims(t.scales, 2),
                                               mx::expand_dims(t.zeros, 2),
                                               transpose,
                                               t.group_size,
                                               t.bits),
                          x.dtype());
      };
  auto grouped = scaled_groups(q, k.data.shape(1), parameters.scale);
  auto scores = product(grouped, k, /*transpose=*/true);
  return ungroup_heads(
      product(probabilities(scores, parameters), v, /*transpose=*/false));
}

}  // namespace reference

mx::array causal_mask(int num_queries,
                      int num_keys,
                      int first_query,
                      int window_tokens) {
  auto queries =
      mx::expand_dims(mx::arange(first_query, first_query + num_queries), 1);
  auto keys = mx::expand_dims(mx::arange(num_keys), 0);
  auto mask = mx::greater_equal(queries, keys);
  if (window_tokens <= 0) return mask;
  auto oldest = mx::subtract(queries, mx::array(window_tokens));
  return mx::logical_and(mask, mx::greater(keys, oldest));
}

}  // namespace mlxlm::kernels
