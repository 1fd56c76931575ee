// Attention of one layer.
#pragma once

#include <optional>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/seam.h"
#include "nn/block_index.h"
#include "nn/block_pattern.h"
#include "nn/query_scale.h"
#include "nn/rope.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// Where a part's output goes: residual + post_norm(output) * scale.
struct Residual {
  const kernels::Norm* post_norm = nullptr;
  const mx::array* stream = nullptr;  // null: nothing is added
  float scale = 1.0f;
};

// Mixes two answers by sigmoid(q . weight + bias) for each head and token.
struct MixGate {
  mx::array weight;  // [H, Dh]
  mx::array bias;    // [H]

  // q, first, second [B, H, L, Dh].
  mx::array operator()(const mx::array& q,
                       const mx::array& first,
                       const mx::array& second) const;
};

// Keys and values as they are projected, [B, L, Hkv * Dh], for layers that make
// theirs of an earlier one's.
struct ProjectedKeys {
  mx::array k, v;
};

// What a gate's outputs go through before they multiply the heads' answers.
enum class GateFunction { sigmoid, softplus };

struct Attention {
  kernels::Linear q;
  std::optional<kernels::Linear> k;  // none: another layer's
  std::optional<kernels::Linear> v;  // none: what k projects
  kernels::Linear o;
  bool partial = false;  // some of the heads: o's answers are to be summed
  // Of all numbers, of each head's, or (weight [H, Dh]) of each head's with
  // weights of its own.
  std::optional<kernels::Norm> q_norm, k_norm;
  std::optional<kernels::Norm> v_norm;
  bool norm_after_rope = false;  // per head only
  const Rope* rope = nullptr;    // null: no positions
  int num_heads = 0;
  int num_kv_heads = 0;
  // Query head h reads key head h % num_kv_heads, not h / group.
  bool alternating_heads = false;
  QueryScale query_scale;
  std::optional<mx::array> query_gain;  // [H, 1, 1]
  // Outputs, [H, D] or [H * Dv, D], that multiply the answers.
  std::optional<kernels::Linear> gate;
  std::optional<kernels::Norm> answer_norm;  // of each head's, before the gate
  GateFunction gate_function = GateFunction::sigmoid;
  float clip = 0.0f;  // of the projections; 0: off
  float value_factor = 1.0f;
  int chunk_tokens = 0;  // > 0: only tokens of the same chunk are seen
  std::optional<kernels::Norm> heads_norm;  // over all answers, before o
  // Scalars: keys and values are rounded to so many of these, 8 bits.
  std::optional<mx::array> key_step, value_step;
  std::optional<MixGate> mix;
  std::optional<BlockPattern> blocks;
  // The cache is a list then, of attention's and this one's.
  std::optional<BlockIndex> index;
  AttendSpec spec;

  // x [B, L, D], `norm` (may be null) comes first; `cache` null: x is all there
  // is. Without k `cache` is the other layer's, unless `projected` (may be
  // null) has what that one projected; with k it gets what this one does.
  // `other` (may be null) is one that is read as well. Returns the heads'
  // answers [B, H, L, Dv].
  mx::array attend(const mx::array& x,
                   const kernels::Norm* norm,
                   Cache* cache,
                   Cache* other = nullptr,
                   std::optional<ProjectedKeys>* projected = nullptr) const;

  std::vector<kernels::Linear*> linears();

 private:
  using Runs = std::vector<kernels::TokenRun>;

  // Queries, keys and values (with k or `projected`) and outputs of the gate
  // (with one): [B, H, L, Dh] each.
  std::vector<mx::array> project(const mx::array& x,
                                 const kernels::Norm* norm,
                                 const Runs& runs,
                                 std::optional<ProjectedKeys>* projected) const;
  // Rows of different lengths have to be read one by one.
  bool row_by_row() const {
    return index || blocks || (rope != nullptr && rope->depends_on_length()) ||
           query_scale.depends_on_position();
  }
};

// The heads' answers [B, H, L, Dv] as rows for the output projection,
// [B, L, H * Dv].
mx::array in_token_order(const mx::array& heads);

}  // namespace mlxlm::nn
