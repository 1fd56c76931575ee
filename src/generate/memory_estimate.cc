#include "generate/memory_estimate.h"

#include <algorithm>

#include "cache/rotating_cache.h"
#include "cache/rows.h"
#include "generate/options.h"
#include "generate/prefill.h"

namespace mlxlm {

std::uint64_t estimate_cache_bytes(Model& model,
                                   int num_tokens,
                                   const GenerateOptions& options) {
  // As many tokens as a cache makes room for at once.
  PromptCache cache = model.make_cache(options.max_kv_size);
  model.forward(token_row(std::vector<int>(kCacheStepTokens, 0)), cache);
  auto quantization = kv_quantization(options);
  if (quantization && num_tokens >= options.quantized_kv_start) {
    for (auto& layer : cache) {
      auto quantized = layer->to_quantized(*quantization);
      layer = quantized ? quantized : layer;
    }
  }
  std::uint64_t sum = 0;
  for (const auto& layer : cache) {
    if (!layer->capabilities().attends) {
      sum += layer->nbytes();
      continue;
    }
    std::int64_t tokens = num_tokens;
    if (auto* rotating = dynamic_cast<RotatingKVCache*>(layer.get())) {
      // While it reads a chunk it holds that, too.
      tokens = std::min(
          tokens,
          std::int64_t{rotating->max_size()} + options.prefill_step_tokens);
    }
    sum +=
        layer->nbytes() / kCacheStepTokens * static_cast<std::uint64_t>(tokens);
  }
  return sum;
}

}  // namespace mlxlm
