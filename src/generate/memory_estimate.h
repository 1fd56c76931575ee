// How much memory a prompt's keys and values will need.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

// Of a model's prompt caches with the options' max_kv_size, chunks and
// quantization. Nothing is computed: the shapes of an unevaluated pass tell.
class CacheEstimate {
 public:
  CacheEstimate(Model& model, const GenerateOptions& options);
  // Likewise of the model's draft head.
  static CacheEstimate of_head(Model& model, const GenerateOptions& options);

  // Bytes of a cache that has read `num_tokens`.
  std::uint64_t bytes(std::int64_t num_tokens) const;
  // The most on the way there: quantized, when it is held in both ways.
  std::uint64_t most_bytes(std::int64_t num_tokens) const;

 private:
  // `cache` has read `num_tokens`.
  CacheEstimate(PromptCache cache,
                int num_tokens,
                const GenerateOptions& options);

  struct Layer {
    std::uint64_t bytes_per_token = 0;
    std::int64_t max_tokens = 0;       // that it holds
    std::uint64_t constant_bytes = 0;  // of a state
  };
  // `cache` has read `num_tokens`; the parts of a layer count as layers.
  static std::vector<Layer> layers_of(const PromptCache& cache,
                                      int num_tokens,
                                      int prefill_step_tokens);

  static std::uint64_t sum(const std::vector<Layer>& layers,
                           std::int64_t num_tokens);

  std::vector<Layer> plain_;
  std::vector<Layer> quantized_;  // from quantized_kv_start_ on; empty: never
  std::int64_t quantized_kv_start_;
  int prefill_step_tokens_;
};

std::uint64_t weight_bytes(const Model& model);

}  // namespace mlxlm
