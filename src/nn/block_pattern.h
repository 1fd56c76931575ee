// Attention to blocks of tokens: the newest ones, and every so-many-th of the
// others, which ones depends on the head.
// Method: Attention._block_sparse_mask of mlx_lm/models/phi3small.py, by the
// tokens' positions.
#pragma once

#include <optional>

#include <mlx/mlx.h>

#include "cache/attention_cache.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct BlockPattern {
  int block_tokens = 1;
  int num_local_blocks = 1;
  int stride = 1;

  // What the `num_queries` newest of the keys may see, bool [1, H, L, T],
  // causal or not; none where that is everything. The keys are those that the
  // cache will hold (null: as many as queries).
  std::optional<mx::array> operator()(int num_heads,
                                      int num_queries,
                                      const Cache* cache) const {
    const auto* held = dynamic_cast<const AttentionCache*>(cache);
    const int num_keys =
        held != nullptr ? held->num_keys_after(num_queries) : num_queries;
    if (num_keys <= num_local_blocks * block_tokens) return std::nullopt;
    auto blocks_from = [&](int begin) {
      return mx::floor_divide(mx::arange(begin, num_keys),
                              mx::array(block_tokens));
    };
    auto own = mx::expand_dims(blocks_from(num_keys - num_queries), -1);
    auto blocks = blocks_from(0);
    auto local =
        mx::less(mx::subtract(own, blocks), mx::array(num_local_blocks));
    auto heads = mx::reshape(mx::arange(1, num_heads + 1), {1, -1, 1, 1});
    auto kept = mx::equal(
        mx::remainder(mx::add(heads, blocks), mx::array(stride)), mx::array(0));
    return mx::logical_or(local, kept);
  }
};

}  // namespace mlxlm::nn
