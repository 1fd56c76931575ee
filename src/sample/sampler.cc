#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/sample.h>

#include "kernels/seam.h"
#include "sample/check.h"
#include "sample/filters.h"
#include "sample/known_samplers.h"

namespace mlxlm {
namespace {

// Below this, 1 / temperature would overflow float32 products.
constexpr double kColdestTemperature = 1e-30;

void check(const SamplerOptions& options) {
  constexpr double kNoLimit = std::numeric_limits<double>::infinity();
  check_range("temperature", options.temperature, 0, kNoLimit);
  check_range("top_p", options.top_p, 0, 1);
  check_range("min_p", options.min_p, 0, 1);
  check_range("min_tokens_to_keep", options.min_tokens_to_keep, 1, kNoLimit);
  check_range("top_k", options.top_k, 0, kNoLimit);
  check_range("xtc_probability", options.xtc_probability, 0, 1);
  check_range("xtc_threshold", options.xtc_threshold, 0, 0.5);
  for (int token : options.xtc_special_tokens) {
    check_range("xtc_special_tokens", token, 0, kNoLimit);
  }
}

}  // namespace

mx::array GreedySampler::operator()(const mx::array& logprobs) const {
  return kernels::table().argmax(logprobs);
}

mx::array FilteredSampler::log_weights(const mx::array& logprobs) const {
  mx::array left = logprobs;
  if (options.top_p > 0 && options.top_p < 1) {
    left = apply_top_p(left, options.top_p);
  }
  if (options.min_p > 0) {
    left = apply_min_p(left, options.min_p, options.min_tokens_to_keep);
  }
  if (options.xtc_probability > 0) {
    left = apply_xtc(left,
                     options.xtc_probability,
                     options.xtc_threshold,
                     options.xtc_special_tokens);
  }
  if (options.top_k > 0) {
    left = apply_top_k(left, options.top_k);
  }
  mx::array scale(static_cast<float>(1.0 / options.temperature), left.dtype());
  return mx::multiply(left, scale);
}

mx::array FilteredSampler::operator()(const mx::array& logprobs) const {
  return mx::random::categorical(log_weights(logprobs));
}

Sampler make_sampler(const SamplerOptions& options) {
  check(options);
  if (options.temperature < kColdestTemperature) {
    return GreedySampler{};
  }
  return FilteredSampler{options};
}

void seed(std::uint64_t value) { mx::random::seed(value); }

mx::array SeededSampler::operator()(const mx::array& logprobs) const {
  // MLX's functions draw from the thread's default keys: these take their place
  // for the call.
  struct Exchange {
    explicit Exchange(mx::random::KeySequence& keys) : own(keys) { swap(); }
    ~Exchange() { swap(); }
    void swap() { std::swap(own, mx::random::KeySequence::default_()); }
    mx::random::KeySequence& own;
  };
  Exchange exchange(*keys);
  return sampler(logprobs);
}

SeededSampler SeededSampler::ahead() const {
  return {sampler, std::make_shared<mx::random::KeySequence>(*keys)};
}

Sampler with_seed(Sampler sampler, std::uint64_t value) {
  return SeededSampler{std::move(sampler),
                       std::make_shared<mx::random::KeySequence>(value)};
}

}  // namespace mlxlm
