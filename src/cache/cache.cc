// What all kinds share, and the functions on whole prompt caches.
#include <algorithm>
#include <climits>
#include <map>
#include <string>

#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

#include "cache/settle.h"
#include "core/log.h"

namespace mlxlm {

mx::array Cache::attend(const mx::array&,
                        const mx::array&,
                        const mx::array&,
                        const AttendSpec&) {
  throw Error(ErrorKind::unsupported,
              "a " + std::string(kind()) + " holds no keys and values");
}

mx::array Cache::attend_again(const mx::array&, const AttendSpec&) {
  throw Error(
      ErrorKind::unsupported,
      "layers can't share the keys and values of a " + std::string(kind()));
}

int Cache::trim(int) { return 0; }

bool Cache::is_trimmable_after(int) const { return is_trimmable(); }

CachePtr Cache::to_quantized(const KvQuantization&) const { return nullptr; }

bool can_trim_prompt_cache(const PromptCache& cache) {
  return std::ranges::all_of(
      cache, [](const CachePtr& layer) { return layer->is_trimmable(); });
}

int trimmable_tokens(const PromptCache& cache) {
  int fewest = cache.empty() ? 0 : INT_MAX;
  for (const CachePtr& layer : cache) {
    fewest = std::min(fewest, layer->capabilities().trimmable_tokens);
  }
  return fewest;
}

int trim_prompt_cache(PromptCache& cache, int num_tokens) {
  num_tokens = std::clamp(num_tokens, 0, trimmable_tokens(cache));
  for (const CachePtr& layer : cache) {
    layer->trim(num_tokens);
  }
  return num_tokens;
}

int prompt_cache_offset(const PromptCache& cache) {
  int longest = 0;
  for (const CachePtr& layer : cache) {
    longest = std::max(longest, layer->offset());
  }
  return longest;
}

std::size_t prompt_cache_nbytes(const PromptCache& cache) {
  std::size_t sum = 0;
  for (const CachePtr& layer : cache) {
    sum += layer->nbytes();
  }
  return sum;
}

PromptCache fork_prompt_cache(const PromptCache& cache) {
  PromptCache copy;
  for (const CachePtr& layer : cache) {
    copy.push_back(layer->fork());
  }
  return copy;
}

PromptCacheCheckpoint checkpoint_prompt_cache(const PromptCache& cache) {
  PromptCacheCheckpoint checkpoint{cache, {}};
  for (const CachePtr& layer : cache) {
    checkpoint.checkpoints.push_back(layer->checkpoint());
  }
  return checkpoint;
}

void rollback_prompt_cache(PromptCache& cache,
                           const PromptCacheCheckpoint& checkpoint) {
  for (std::size_t i = 0; i < checkpoint.layers.size(); ++i) {
    checkpoint.layers[i]->rollback(*checkpoint.checkpoints[i]);
  }
  cache = checkpoint.layers;
}

namespace {

// "8 bits", or "8 bits for keys and 4 for values".
std::string described(const KvQuantization& quantization) {
  std::string text = std::to_string(quantization.key_bits) + " bits";
  if (quantization.value_bits != quantization.key_bits) {
    text += " for keys and " + std::to_string(quantization.value_bits) +
            " for values";
  }
  return text;
}

}  // namespace

void quantize_prompt_cache(PromptCache& cache,
                           int quantized_kv_start,
                           const KvQuantization& quantization) {
  std::size_t num_changed = 0;
  std::map<std::string, int> left;
  for (CachePtr& layer : cache) {
    bool reached = layer->offset() >= quantized_kv_start;
    CachePtr quantized = reached ? layer->to_quantized(quantization) : nullptr;
    if (quantized) {
      layer = std::move(quantized);
      ++num_changed;
    } else if (!layer->capabilities().quantization) {
      ++left[std::string(layer->kind())];
    }
  }
  if (num_changed == 0 || left.empty()) {
    return;
  }
  std::string text = "the KV cache of " + std::to_string(num_changed) + " of " +
                     std::to_string(cache.size()) + " layers is quantized to " +
                     described(quantization) + "; left as they are: ";
  for (const auto& [kind, count] : left) {
    text +=
        (text.ends_with(' ') ? "" : ", ") + std::to_string(count) + " " + kind;
  }
  log_info(text);
}

void evaluate_prompt_cache(const PromptCache& cache) {
  mx::eval(arrays_of(cache));
}

}  // namespace mlxlm
