#include "generate/memory_estimate.h"

#include <algorithm>
#include <limits>

#include "cache/cache_list.h"
#include "cache/rotating_cache.h"
#include "cache/rows.h"
#include "generate/options.h"
#include "generate/prefill.h"

namespace mlxlm {

namespace {

// Caches make room for as many tokens as this at once, however few they get.
int tokens_of_step(const Model& model) {
  const int context = model.context_tokens();
  return context > 0 ? std::min(context, kCacheStepTokens) : kCacheStepTokens;
}

PromptCache read_by(Model& model, const GenerateOptions& options) {
  PromptCache cache = model.make_cache(options.max_kv_size);
  model.forward(token_row(std::vector<int>(tokens_of_step(model), 0)), cache);
  return cache;
}

}  // namespace

std::vector<CacheEstimate::Layer> CacheEstimate::layers_of(
    const PromptCache& cache, int num_tokens, int prefill_step_tokens) {
  std::vector<Layer> layers;
  for (const auto& layer : cache) {
    if (auto* list = dynamic_cast<CacheList*>(layer.get())) {
      PromptCache parts;
      for (std::size_t i = 0; i < list->count(); ++i)
        parts.push_back((*list)[i]);
      for (auto& each : layers_of(parts, num_tokens, prefill_step_tokens)) {
        layers.push_back(each);
      }
      continue;
    }
    if (!layer->capabilities().attends) {
      layers.push_back({.constant_bytes = layer->nbytes()});
      continue;
    }
    std::int64_t most = std::numeric_limits<std::int64_t>::max();
    int num_rows = kCacheStepTokens;
    if (auto* rotating = dynamic_cast<RotatingKVCache*>(layer.get())) {
      // While it reads a chunk it holds that, too.
      most = std::int64_t{rotating->max_size()} + prefill_step_tokens;
      num_rows = num_tokens;
    }
    layers.push_back({layer->nbytes() / num_rows, most, 0});
  }
  return layers;
}

CacheEstimate::CacheEstimate(Model& model, const GenerateOptions& options)
    : CacheEstimate(read_by(model, options), tokens_of_step(model), options) {}

CacheEstimate CacheEstimate::of_head(Model& model,
                                     const GenerateOptions& options) {
  const int count = tokens_of_step(model);
  auto& head = *model.draft_head();
  PromptCache cache = head.make_cache(options.max_kv_size);
  const auto tokens = token_row(std::vector<int>(count, 0));
  head.forward(tokens, model.embed(tokens), cache);
  return {std::move(cache), count, options};
}

CacheEstimate::CacheEstimate(PromptCache cache,
                             int num_tokens,
                             const GenerateOptions& options)
    : quantized_kv_start_(options.quantized_kv_start),
      prefill_step_tokens_(options.prefill_step_tokens) {
  plain_ = layers_of(cache, num_tokens, options.prefill_step_tokens);
  if (auto quantization = kv_quantization(options)) {
    for (auto& layer : cache) {
      auto quantized = layer->to_quantized(*quantization);
      layer = quantized ? quantized : layer;
    }
    quantized_ = layers_of(cache, num_tokens, options.prefill_step_tokens);
  }
}

std::uint64_t CacheEstimate::sum(const std::vector<Layer>& layers,
                                 std::int64_t num_tokens) {
  std::uint64_t sum = 0;
  for (const Layer& layer : layers) {
    sum += layer.constant_bytes +
           layer.bytes_per_token * static_cast<std::uint64_t>(
                                       std::min(num_tokens, layer.max_tokens));
  }
  return sum;
}

std::uint64_t CacheEstimate::bytes(std::int64_t num_tokens) const {
  const bool quantized =
      !quantized_.empty() && num_tokens >= quantized_kv_start_;
  return sum(quantized ? quantized_ : plain_, num_tokens);
}

std::uint64_t CacheEstimate::most_bytes(std::int64_t num_tokens) const {
  if (quantized_.empty() || num_tokens < quantized_kv_start_) {
    return bytes(num_tokens);
  }
  // The chunk with which it reaches the start is read first.
  const std::int64_t then =
      std::min(num_tokens, quantized_kv_start_ + prefill_step_tokens_);
  return std::max(sum(plain_, then) + sum(quantized_, then), bytes(num_tokens));
}

std::uint64_t weight_bytes(const Model& model) {
  std::uint64_t sum = 0;
  for (const auto& parameter : model.parameters()) {
    sum += parameter.value.nbytes();
  }
  return sum;
}

}  // namespace mlxlm
