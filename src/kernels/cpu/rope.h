// Rotations of queries and keys, and their order.
#pragma once

#include <memory>
#include <vector>

#include "kernels/seam.h"

namespace mlxlm::kernels::cpu {

// Cosines and sines of the positions of an operation's tokens: those of a row,
// which all rows have, or of all rows.
struct RopeTable {
  std::vector<float> cosines;  // [num_tokens, dimensions / 2]
  std::vector<float> sines;
  int half = 0;
  int num_tokens = 0;
  bool interleaved = false;

  RopeTable(const Rope& rope, const std::vector<TokenRun>& runs);
  // x: one head of token i, of all rows' tokens.
  void rotate(float* x, int i) const;
};

// Null for no rope. The layers of one step share a table.
std::shared_ptr<const RopeTable> rope_table(const Rope* rope,
                                            const Positions& positions,
                                            int num_tokens);

// Rows [first, first + count) of [batch, tokens, num_heads * head_size], which
// begin at x -> their places in y [batch, num_heads, tokens, head_size],
// rotated where there is a table. x may be y where there is one token.
void turn(const float* x,
          int first,
          int count,
          int tokens,
          int num_heads,
          int head_size,
          const RopeTable* rope,
          float* y);

}  // namespace mlxlm::kernels::cpu
