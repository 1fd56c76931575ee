// What all kinds share, and the functions on whole prompt caches.
#include <algorithm>

#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

namespace mlxlm {

mx::array Cache::attend(const mx::array&,
                        const mx::array&,
                        const mx::array&,
                        const AttendSpec&) {
  throw Error(ErrorKind::unsupported,
              "a " + std::string(kind()) + " holds no keys and values");
}

int Cache::trim(int) { return 0; }

bool Cache::is_trimmable_after(int) const { return is_trimmable(); }

std::shared_ptr<Cache> Cache::to_quantized(int, int) const { return nullptr; }

bool can_trim_prompt_cache(const PromptCache& cache) {
  return std::ranges::all_of(
      cache, [](const CachePtr& layer) { return layer->is_trimmable(); });
}

int trim_prompt_cache(PromptCache& cache, int num_tokens) {
  if (cache.empty() || !can_trim_prompt_cache(cache)) {
    return 0;
  }
  int trimmed = cache.front()->trim(num_tokens);
  for (std::size_t i = 1; i < cache.size(); ++i) {
    cache[i]->trim(num_tokens);
  }
  return trimmed;
}

void quantize_prompt_cache(PromptCache& cache,
                           int quantized_kv_start,
                           int group_size,
                           int bits) {
  for (CachePtr& layer : cache) {
    if (layer->offset() >= quantized_kv_start) {
      if (auto quantized = layer->to_quantized(group_size, bits)) {
        layer = std::move(quantized);
      }
    }
  }
}

void evaluate_prompt_cache(const PromptCache& cache) {
  std::vector<mx::array> arrays;
  for (const CachePtr& layer : cache) {
    layer->append_arrays_to(arrays);
  }
  mx::eval(std::move(arrays));
}

}  // namespace mlxlm
