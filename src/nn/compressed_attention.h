// Attention to the newest tokens and to groups of earlier ones, each compressed
// to one row, of which an indexer chooses some. Keys are values, one head for
// all queries. Layers may use what earlier ones compressed or chose. Method:
// mlx_lm/models/deepseek_v41.py, transformers/models/deepseek_v4.
#pragma once

#include <optional>
#include <vector>

#include "nn/mixer.h"
#include "nn/rope.h"

namespace mlxlm::nn {

struct CompressedSizes {
  int num_heads = 0;
  int head_size = 0;
  int rotated = 0;  // of a head, at its end
  int num_output_groups = 0;
  int window_tokens = 0;
  int group_tokens = 0;  // compressed to one row; 0: the window is all it sees
  bool sees_all_rows = false;  // nobody chooses
  bool rounds = false;         // what is held, as small floats
};

// Makes the rows: `gate` and the places in a group weigh `kv` by a softmax over
// each group, or over the first half of the group before's numbers and the
// second half of its own.
struct Compressor {
  kernels::Linear kv;
  std::optional<kernels::Linear> gate;  // none: groups are single tokens
  std::optional<mx::array> places;      // [group_tokens, width]
  bool overlaps = false;                // kv and gate have two times the width
  kernels::Norm norm;
};

// Chooses rows. Its keys are made of the rows, where those are made, or by a
// compressor of its own.
struct RowIndex {
  kernels::Linear q;       // [H * D, query rank]
  kernels::Linear weight;  // [H, width]
  std::optional<kernels::Linear> k;
  std::optional<kernels::Norm> k_norm;
  std::optional<Compressor> compressor;
  int num_heads = 0;
  int num_rows = 0;  // chosen
  // Later layers choose among the best of so many blocks of rows; 0: of all.
  int num_blocks = 0;
  int block_rows = 0;
};

struct CompressedAttentionParts {
  CompressedSizes sizes;
  kernels::Linear q_down, q, kv;
  kernels::Norm q_norm, kv_norm;
  std::optional<kernels::Norm> q_head_norm;  // of each head's queries
  std::optional<Compressor> compressor;      // none: an earlier layer's rows
  std::optional<RowIndex> index;             // none: an earlier layer's choice
  const Rope* rope = nullptr;
  Rope back;                   // that turns the answers back
  mx::array sinks;             // [H]
  kernels::Linear out_groups;  // [G, rank, H * D / G]
  kernels::Linear out;
};

class CompressedAttention : public Mixer {
 public:
  explicit CompressedAttention(CompressedAttentionParts parts)
      : p_(std::move(parts)) {}

  // State: the window, then what the compressors hold.
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override;

 private:
  // x [1, L, D] of one row -> its heads' answers in groups, [1, L, G * rank].
  mx::array of_row(const mx::array& x,
                   Cache* cache,
                   CompressedShare& share) const;
  void compress(const mx::array& x,
                int offset,
                Cache& state,
                CompressedShare& share) const;
  // Those of the groups that end at or before each of so many tokens.
  mx::array num_visible(int offset, int tokens) const;
  void choose(const mx::array& x,
              const mx::array& q_input,
              int offset,
              CompressedShare& share) const;
  mx::array attend(const mx::array& q,
                   const mx::array& kv,
                   Cache& window,
                   const CompressedShare& share) const;
  // Rows [B, K, D] from the one of the group `first` on, at their positions.
  mx::array placed(const mx::array& rows, int first) const;
  // Turns the end of each head: x [B, L, H, D] -> [B, H, L, D].
  mx::array turned(const mx::array& x, kernels::Rope rope, int offset) const;

  CompressedAttentionParts p_;
};

}  // namespace mlxlm::nn
