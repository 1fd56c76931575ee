// What make_sampler() makes. Speculative decoding looks for these in a Sampler
// with target<>(): tokens that are certain can be checked together, and a known
// distribution can be sampled by rejection.
#pragma once

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

}  // namespace mlxlm
