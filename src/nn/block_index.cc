#include "nn/block_index.h"

#include <limits>

#include <mlx/mlx.h>

#include "nn/linear.h"
#include "nn/token_index.h"

namespace mlxlm::nn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

mx::array BlockIndex::chosen_blocks(const mx::array& scores,
                                    int first_query) const {
  const int num_keys = scores.shape(3);
  const int count = (num_keys + block_tokens - 1) / block_tokens;
  auto padded = mx::pad(scores,
                        std::vector<int>{3},
                        {0},
                        {count * block_tokens - num_keys},
                        mx::array(-kInfinity));
  auto best = mx::max(mx::unflatten(padded, 3, {count, block_tokens}), -1);
  if (num_local_blocks > 0) {
    auto queries = mx::arange(first_query, first_query + scores.shape(2));
    auto own =
        mx::expand_dims(mx::floor_divide(queries, mx::array(block_tokens)), -1);
    auto blocks = mx::arange(count);
    auto local = mx::logical_and(
        mx::less_equal(blocks, own),
        mx::greater(blocks, mx::subtract(own, mx::array(num_local_blocks))));
    best = mx::where(local, mx::array(kInfinity), best);
  }
  auto order = mx::argpartition(mx::negative(best), num_blocks - 1, -1);
  auto stop = order.shape();
  stop.back() = num_blocks;
  auto chosen = mx::slice(order, mx::Shape(4, 0), stop);
  return mx::put_along_axis(
      mx::zeros(best.shape(), mx::bool_), chosen, mx::array(true), -1);
}

std::optional<mx::array> BlockIndex::operator()(const mx::array& x,
                                                int num_query_heads,
                                                Cache* cache) const {
  const auto& table = kernels::table();
  const int num_queries = x.shape(1);
  const int offset = cache != nullptr ? cache->offset() : 0;
  const auto turn = rope->at(num_queries, offset);
  auto new_keys = table.norm_rope(apply(x, k), 1, &k_norm, &turn, offset);
  auto shape = new_keys.shape();
  shape.back() = 0;
  auto keys =
      append_index_keys(new_keys, mx::zeros(shape, new_keys.dtype()), cache);
  const int num_keys = keys.shape(2);
  if (num_keys <= num_blocks * block_tokens) return std::nullopt;

  auto queries =
      table.norm_rope(apply(x, q), num_heads, &q_norm, &turn, offset);
  auto scores = mx::matmul(mx::astype(queries, mx::float32),
                           mx::swapaxes(mx::astype(keys, mx::float32), -1, -2));
  // No block wins by a key that comes later.
  const auto causal = kernels::causal_mask(num_queries, num_keys, offset);
  scores = mx::where(causal, scores, mx::array(-kInfinity));
  auto visible = mx::repeat(chosen_blocks(scores, offset), block_tokens, 3);
  auto stop = scores.shape();
  visible = mx::logical_and(mx::slice(visible, mx::Shape(4, 0), stop), causal);
  return mx::repeat(visible, num_query_heads / num_heads, 1);
}

}  // namespace mlxlm::nn
