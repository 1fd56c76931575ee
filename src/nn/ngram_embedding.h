// Embeddings of a token together with the tokens before it: hashed into several
// tables for each length, and added to its own.
// Method: NgramEmbedding of mlx_lm/models/longcat_flash_ngram.py.
#pragma once

#include <vector>

#include <mlxlm/cache.h>

#include "kernels/seam.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct NgramEmbedding {
  std::vector<kernels::Linear> tables;       // [rows of table, E]
  std::vector<kernels::Linear> projections;  // [D, E]
  std::vector<int> num_rows;                 // of each table
  int vocabulary_size = 0;
  int longest = 0;  // tokens together, from 2 on
  int tables_per_length = 0;

  // tokens [B, L], their own embeddings [B, L, D] -> [B, L, D]. The cache
  // (null: tokens are all there is) holds the latest tokens; in a batch, those
  // of each row.
  mx::array operator()(const mx::array& tokens,
                       const mx::array& own,
                       Cache* cache) const;

 private:
  // tokens [B, T] -> rows of the table at the last L of them, [B, L].
  mx::array rows_of(const mx::array& tokens, int table, int count) const;
};

}  // namespace mlxlm::nn
