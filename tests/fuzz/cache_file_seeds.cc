#include "tests/fuzz/cache_file_seeds.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "tests/fuzz/fuzz_model.h"

namespace mlxlm {
namespace {

// A layer with a few tokens.
CachePtr filled(CachePtr cache) {
  auto read = [&](Cache& part) {
    for (int count : {4, 1}) {
      if (part.capabilities().attends) {
        auto rows = mx::random::normal(
            {1, 2, count, 32}, mx::float32, mx::random::key(5));
        part.attend(rows, rows, rows, {.scale = 0.3f});
      }
    }
  };
  if (auto* list = dynamic_cast<CacheList*>(cache.get())) {
    for (std::size_t i = 0; i < list->count(); ++i) {
      read(*(*list)[i]);
    }
  } else {
    read(*cache);
  }
  return cache;
}

}  // namespace

std::vector<PromptCache> seeds_of_all_kinds() {
  auto arrays = std::make_shared<ArraysCache>(2, std::vector<int>{1});
  arrays->set(0, mx::ones({1, 3}));
  return {
      {filled(make_rotating_cache(3))},
      {filled(make_rotating_cache(9, 2))},
      {filled(make_rotating_cache(3, 1, KvQuantization{4, 4, 32}))},
      {filled(make_concatenate_cache())},
      {filled(make_chunked_cache(2))},
      {arrays},
      {filled(
          make_cache_list({make_concatenate_cache(), make_rotating_cache(3)}))},
      {make_kv_cache(), make_quantized_cache({8, 3, 32})},
      // Buffers of 256 rows: larger files.
      {filled(make_kv_cache())},
      {filled(make_quantized_cache({8, 3, 32}))},
  };
}

std::vector<PromptCache> seeds_of_the_toy_model() {
  std::vector<GenerateOptions> ways(3);
  ways[1].kv_bits = 4;
  ways[1].kv_group_size = 32;
  ways[1].quantized_kv_start = 0;
  ways[2].max_kv_size = 8;
  std::vector<PromptCache> caches;
  for (GenerateOptions& options : ways) {
    PromptCache cache;
    options.prompt_cache = &cache;
    auto steps = generate_step({1, 2, 3, 4, 5, 6}, fuzz_model(), options);
    steps->next();
    steps.reset();
    caches.push_back(std::move(cache));
  }
  return caches;
}

void save_as_seed(const std::string& path, const PromptCache& cache) {
  CacheMetadata metadata{{"model", "m"}};
  metadata.merge(metadata_of({.tokens = std::vector<int>{1, 2}}, cache));
  save_prompt_cache(path, cache, metadata);
}

}  // namespace mlxlm
