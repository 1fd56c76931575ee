// The lightning indexer of sparse attention: for each query, the earlier tokens
// that attention looks at.
// Method: Indexer of mlx_lm/models/deepseek_v32.py.
#pragma once

#include <optional>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/seam.h"
#include "nn/rope.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct TokenIndex {
  kernels::Linear q;       // [H * Dh, query rank]
  kernels::Linear k;       // [Dh, D]
  kernels::Norm k_norm;    // [Dh]
  kernels::Linear weight;  // [H, D], how much each head counts
  const Rope* rope = nullptr;
  int num_heads = 0;
  int num_tokens = 0;  // that are looked at

  std::vector<kernels::Linear*> linears() { return {&q, &k, &weight}; }

  // x [B, L, D], what queries are made from [B, L, R]. Appends to the cache
  // (null: x is all there is). Returns what each query may see, bool
  // [B, 1, L, T], or none while there are no more tokens than num_tokens.
  std::optional<mx::array> operator()(const mx::array& x,
                                      const mx::array& q_input,
                                      Cache* cache) const;
};

// Appends to an indexer's cache (null: there is nothing else) and returns the
// keys of all tokens so far. keys [B, 1, L, Dh] -> [B, 1, T, Dh]. The values,
// which nobody reads, are as the reference stores them.
mx::array append_index_keys(const mx::array& keys,
                            const mx::array& values,
                            Cache* cache);

}  // namespace mlxlm::nn
