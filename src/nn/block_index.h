// The indexer of sparse attention over blocks: for each query, the blocks of
// earlier tokens that attention looks at.
// Method: Attention._block_mask of mlx_lm/models/minimax_m3_vl.py.
#pragma once

#include <optional>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/seam.h"
#include "nn/rope.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct BlockIndex {
  kernels::Linear q;             // [H * Dh, D]
  kernels::Linear k;             // [Dh, D]
  kernels::Norm q_norm, k_norm;  // [Dh]
  const Rope* rope = nullptr;
  int num_heads = 0;         // each serves as many query heads as the others
  int block_tokens = 0;      // of a block
  int num_blocks = 0;        // that are looked at
  int num_local_blocks = 0;  // of them the newest, whatever their scores

  std::vector<kernels::Linear*> linears() { return {&q, &k}; }

  // x [B, L, D]. Appends to the cache (null: x is all there is). Returns what
  // each of the `num_query_heads` may see, bool [B, num_query_heads, L, T], or
  // none while there are no more blocks than num_blocks.
  std::optional<mx::array> operator()(const mx::array& x,
                                      int num_query_heads,
                                      Cache* cache) const;

 private:
  // scores [B, H, L, T], -inf where nothing is seen: whether each block is
  // looked at, bool [B, H, L, blocks].
  mx::array chosen_blocks(const mx::array& scores, int first_query) const;
};

}  // namespace mlxlm::nn
