// Samplers and logits processors.
//
//   auto sampler = mlxlm::make_sampler({.temperature = 0.8f, .top_p = 0.95f});
//   auto processors = mlxlm::make_logits_processors({.repetition_penalty
//   = 1.1f});
//
// Method: mlx_lm/sample_utils.py. With the same seed and MLX's generator the
// draws equal the reference's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include <mlx/array.h>

namespace mlxlm {

namespace mx = mlx::core;

// logprobs [B, V] -> tokens [B].
using Sampler = std::function<mx::array(const mx::array& logprobs)>;

// tokens [N] so far, logits [B, V] -> logits [B, V].
using LogitsProcessor =
    std::function<mx::array(const mx::array& tokens, const mx::array& logits)>;

struct SamplerOptions {
  float temperature = 0.0f;      // 0: the most probable token
  float top_p = 0.0f;            // 0 or 1: off
  float min_p = 0.0f;            // 0: off
  int min_tokens_to_keep = 1;    // by min_p
  int top_k = 0;                 // 0: off
  float xtc_probability = 0.0f;  // 0: off
  float xtc_threshold = 0.0f;    // in [0, 0.5]
  std::vector<int> xtc_special_tokens;
};

// Throws Error{argument} naming the option out of range.
Sampler make_sampler(const SamplerOptions& options);

struct PenaltyOptions {
  std::vector<std::pair<int, float>> logit_bias;  // token id, added value
  float repetition_penalty = 0.0f;                // 0 or 1: off
  int repetition_context_size = 20;
  float presence_penalty = 0.0f;  // 0: off
  int presence_context_size = 20;
  float frequency_penalty = 0.0f;  // 0: off
  int frequency_context_size = 20;
};

std::vector<LogitsProcessor> make_logits_processors(
    const PenaltyOptions& options);

// Seeds MLX's default generator, as mx.random.seed does.
void seed(std::uint64_t value);

}  // namespace mlxlm
