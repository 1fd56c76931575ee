// A decoding step as one operation: one new token through a whole decoder,
// where an implementation has that for a decoder of this shape.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include <mlx/array.h>

#include "kernels/seam.h"

namespace mlxlm::kernels {

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
  const Linear* gate = nullptr;
  const Linear* up = nullptr;
  const Linear* down = nullptr;
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
};

// Buffers of a layer, [1, Hkv, T, Dh].
struct StepRows {
  mx::array keys;
  mx::array values;
};

class Step {
 public:
  virtual ~Step() = default;

  // Reads a token, an integer [1, 1], at this position, writes its keys and
  // values into the rows in place (as in Table::append_attention) and returns
  // the logits, float32 [1, 1, V]. `rows` are all of one T, which is larger
  // than the position.
  virtual mx::array operator()(const mx::array& token,
                               std::span<const StepRows> rows,
                               int position) = 0;

  // The dtype that rows must have.
  virtual mx::Dtype dtype() const = 0;
};

// Null where table() has no such operation for this decoder.
std::unique_ptr<Step> make_step(const StepSpec& spec);

}  // namespace mlxlm::kernels
