// What make_sampler() makes. Speculative decoding looks for these in a Sampler
// with target<>(): tokens that are certain can be checked together, and a known
// distribution can be sampled by rejection.
#pragma once

#include <memory>

#include <mlx/random.h>

#include <mlxlm/sample.h>

namespace mlxlm {

// logprobs [B, V] -> tokens [B].
struct GreedySampler {
  mx::array operator()(const mx::array& logprobs) const;
};

// At a temperature above 0.
struct FilteredSampler {
  SamplerOptions options;

  mx::array operator()(const mx::array& logprobs) const;

  // Log-weights [B, V] of the tokens that it draws from: -inf where a filter
  // removes one, not normalized. XTC draws once for all rows.
  mx::array log_weights(const mx::array& logprobs) const;
};

// with_seed()'s: another sampler with random numbers of its own.
struct SeededSampler {
  Sampler sampler;
  std::shared_ptr<mx::random::KeySequence> keys;

  mx::array operator()(const mx::array& logprobs) const;

  // Draws the numbers that this one will, and leaves them to it.
  SeededSampler ahead() const;
};

}  // namespace mlxlm
