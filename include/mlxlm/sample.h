// Samplers and logits processors.
//
//   auto sampler = mlxlm::make_sampler({.temperature = 0.8, .top_p = 0.95});
//   auto processors =
//       mlxlm::make_logits_processors({.repetition_penalty = 1.1});
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

// Numbers are double as Python's are: the reference computes 1 / temperature
// and log(min_p) in double before it rounds to the logits' type.
struct SamplerOptions {
  double temperature = 0.0;    // 0: the most probable token, no filters
  double top_p = 0.0;          // in [0, 1]; 0 or 1: off
  double min_p = 0.0;          // in [0, 1], relative to the best token; 0: off
  int min_tokens_to_keep = 1;  // by min_p
  int top_k = 0;               // 0, or the vocabulary's size and more: off
  double xtc_probability = 0.0;              // in [0, 1]; 0: off
  double xtc_threshold = 0.1;                // in [0, 0.5]
  std::vector<int> xtc_special_tokens = {};  // never removed by XTC
};

// Filters in the reference's order (top-p, min-p, XTC, top-k), then the draw.
// Throws Error{argument} naming the option out of range.
Sampler make_sampler(const SamplerOptions& options);

// The same sampler with random numbers of its own: those that MLX's generator
// gives after seed(value), whatever else draws meanwhile. Copies share them.
// With drafts of any kind the tokens are those without.
Sampler with_seed(Sampler sampler, std::uint64_t value);

struct PenaltyOptions {
  std::vector<std::pair<int, double>> logit_bias = {};  // token id, added value
  // Context sizes: the number of latest tokens looked at; 0: all of them.
  double repetition_penalty = 0.0;  // divides (or multiplies) logits; 0: off
  int repetition_context_size = 20;
  double presence_penalty = 0.0;  // subtracted once per token seen; 0: off
  int presence_context_size = 20;
  double frequency_penalty = 0.0;  // subtracted per appearance; 0: off
  int frequency_context_size = 20;
};

// Throws Error{argument}; a biased token outside the vocabulary is found when
// the processor first sees logits.
std::vector<LogitsProcessor> make_logits_processors(
    const PenaltyOptions& options);

// Seeds MLX's default generator, as mx.random.seed does.
void seed(std::uint64_t value);

}  // namespace mlxlm
