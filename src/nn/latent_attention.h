// Multi-head latent attention (MLA): keys and values are made from one small
// vector per token, the latent, and a part that turns with the position and is
// shared by all heads.
// Method: mlx_lm/models/deepseek_v3.py (absorbed), deepseek_v2.py (plain).
#pragma once

#include <optional>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/seam.h"
#include "nn/query_scale.h"
#include "nn/rope.h"
#include "nn/token_index.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct LatentSizes {
  int num_heads = 0;
  int query_rank = 0;  // 0: queries are made from the input directly
  int rank = 0;        // of the latent
  int fixed = 0;       // of a head's keys, the part without positions
  int rotated = 0;     // and the part with them
  int value = 0;       // of a head's values

  int head() const { return fixed + rotated; }
};

struct LatentAttention {
  LatentSizes sizes;
  std::optional<kernels::Linear> q_down;  // [query_rank, D]
  std::optional<kernels::Norm> q_norm;    // with it
  kernels::Linear q;                      // [H * head, D or query_rank]
  kernels::Linear kv_down;                // [rank + rotated, D]
  kernels::Norm latent_norm;
  // Plain: the cache holds each head's keys and values, made with this.
  std::optional<kernels::Linear> kv_up;  // [H * (fixed + value), rank]
  // Absorbed: the cache holds the latents and the shared part.
  std::optional<kernels::Linear> key_up;    // [H, rank, fixed]
  std::optional<kernels::Linear> value_up;  // [H, value, rank]
  kernels::Linear o;                        // [D, H * value]
  // [H, D] or [H * value, D], whose sigmoid multiplies the heads' answers.
  std::optional<kernels::Linear> gate;
  const Rope* rope = nullptr;  // null: no positions
  float query_factor = 1.0f;
  float latent_factor = 1.0f;
  QueryScale query_scale;
  AttendSpec spec;
  // Absorbed only; the cache is a list then, of attention's and this one's.
  std::optional<TokenIndex> index;

  std::vector<kernels::Linear*> linears();

  // x [B, L, D], `norm` (may be null) comes first; `cache` null: x is all there
  // is. Returns the heads' answers [B, H, L, value].
  mx::array attend(const mx::array& x,
                   const kernels::Norm* norm,
                   Cache* cache) const;

 private:
  struct Projected {
    mx::array q_fixed;    // [B, H, L, fixed]
    mx::array q_rotated;  // [B, H, L, rotated]
    mx::array latent;     // [B, 1, L, rank]
    mx::array k_rotated;  // [B, 1, L, rotated]
    mx::array q_input;    // what `q` was made from
  };

  using Runs = std::vector<kernels::TokenRun>;

  // Rows of different lengths have to be read one by one.
  bool row_by_row() const {
    return index || query_scale.depends_on_position() ||
           (rope != nullptr && rope->depends_on_length());
  }
  Projected project(const mx::array& x, const Runs& runs) const;
  // The answers before the gate; `x` is normalized.
  mx::array answers(const mx::array& x, const Runs& runs, Cache* cache) const;
  mx::array attend_plain(const Projected& p, Cache* cache) const;
  mx::array attend_absorbed(const Projected& p,
                            Cache* cache,
                            AttendSpec how) const;
};

}  // namespace mlxlm::nn
