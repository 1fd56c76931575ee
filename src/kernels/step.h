// A decoding step as one operation: one new token of each row through a whole
// decoder, where an implementation has that for a decoder of this shape.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <mlx/array.h>

#include "kernels/seam.h"

namespace mlxlm::kernels {

// A choice of experts in place of an MLP: the sum of those whose logits are
// largest, each times its part of a softmax over the logits of all, or of the
// chosen ones.
struct StepExperts {
  const Linear* router = nullptr;  // [E, D]
  int num_chosen = 0;
  bool normalize = false;  // over the chosen ones
  float scale = 1.0f;
};

// h = x + o(attention(n(x))) * scale, then h + down(silu(gate(n(h))) *
// up(n(h))) * scale. What is pointed to outlives the step.
struct StepLayer {
  const Norm* attention_norm = nullptr;
  const Linear* q = nullptr;
  const Linear* k = nullptr;
  const Linear* v = nullptr;
  const Linear* o = nullptr;
  const Norm* q_norm = nullptr;  // of each head; may be null
  const Norm* k_norm = nullptr;
  float attention_scale = 1.0f;
  float softcap = 0.0f;
  int window_tokens = 0;             // 0: all
  const mx::array* sinks = nullptr;  // [H]; may be null
  const Norm* mlp_norm = nullptr;
  // Without experts [F, D], [F, D], [D, F], with them [E, ...].
  const Linear* gate = nullptr;
  const Linear* up = nullptr;
  const Linear* down = nullptr;
  std::optional<StepExperts> experts;
};

// The processes that have a part of each layer: what o and down make are parts
// of sums.
struct StepRanks {
  int rank = 0;
  int count = 1;
  bool splits_head = false;  // the head has a part of the vocabulary
  // All ranks' texts, in their order, of one length; all call it.
  std::function<std::vector<std::string>(const std::string&)> gather;
};

struct StepSpec {
  const Linear* embedding = nullptr;
  float embedding_scale = 1.0f;
  Rope rope;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  float residual_scale = 1.0f;
  std::vector<StepLayer> layers;
  const Norm* norm = nullptr;
  const Linear* head = nullptr;
  std::optional<StepRanks> ranks;
};

// Of a layer, [1, Hkv, T, Dh].
struct StepBuffers {
  mx::array keys;
  mx::array values;
};

// What a step takes a token further.
struct StepRow {
  int position = 0;                 // the token's
  std::vector<StepBuffers> layers;  // all of one T, larger than the position
};

struct Stepped {
  mx::array logits;   // float32 [1, N, V], of the whole vocabulary
  mx::array written;  // once it is computed, the buffers have the new rows
};

class Step {
 public:
  virtual ~Step() = default;

  // Reads a token of each row, integers [1, N], and writes its keys and values
  // into the buffers in place, as Table::append_rows does. `after`: what must
  // be computed before the buffers are as they should be.
  virtual Stepped operator()(const mx::array& tokens,
                             std::span<const StepRow> rows,
                             std::span<const mx::array> after) = 0;

  // The most that N may be.
  virtual std::size_t most_rows() const = 0;

  // Whether buffers may have this dtype.
  virtual bool writes(mx::Dtype dtype) const = 0;
};

// Null where table() has no such operation for this decoder; at all ranks or at
// none.
std::unique_ptr<Step> make_step(const StepSpec& spec);

}  // namespace mlxlm::kernels
