#include "tests/fuzz/cache_file_case.h"

#include <cstdio>
#include <cstdlib>

#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

#include "cache/arrays_cache.h"
#include "cache/attention_cache.h"
#include "cache/cache_list.h"
#include "tests/fuzz/fuzz_model.h"

namespace mlxlm {
namespace {

// More would only cost time.
constexpr std::int64_t kMostNumbers = 1 << 16;

void require(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "violated: %s\n", what);
    std::abort();
  }
}

// Attends to `count` new tokens of the shapes that the cache holds.
void read_attention(AttentionCache& cache, int count) {
  int batch = 1, heads = 1, key_size = 32, value_size = 32;
  mx::Dtype dtype = mx::float32;
  const KeysAndValues& rows = cache.rows();
  if (!rows.empty()) {
    batch = rows.keys.batch_size();
    heads = rows.keys.num_heads();
    key_size = rows.keys.head_size();
    value_size = rows.values.head_size();
    std::int64_t numbers = std::int64_t{batch} * heads;
    if (numbers > kMostNumbers || key_size > kMostNumbers ||
        value_size > kMostNumbers ||
        numbers * (std::int64_t{key_size} + value_size) > kMostNumbers) {
      return;
    }
  }
  auto k = mx::ones({batch, heads, count, key_size}, dtype);
  auto v = mx::ones({batch, heads, count, value_size}, dtype);
  int before = cache.offset();
  auto out = cache.attend(k, k, v, {.scale = 0.1f});
  out.eval();
  require(cache.offset() == before + count, "offset counts tokens");
  require(out.shape() == mx::Shape({batch, heads, count, value_size}),
          "shape of the output");
}

void read(Cache& cache, int count) {
  if (auto* list = dynamic_cast<CacheList*>(&cache)) {
    for (std::size_t i = 0; i < list->count(); ++i) {
      read(*(*list)[i], count);
    }
  } else if (auto* attention = dynamic_cast<AttentionCache*>(&cache)) {
    read_attention(*attention, count);
  } else if (auto* arrays = dynamic_cast<ArraysCache*>(&cache)) {
    arrays->make_mask(count);
    arrays->advance(count);
  }
}

// An Error is an answer, too; other exceptions end the process.
template <typename Work>
bool answered(Work work) {
  try {
    work();
    return true;
  } catch (const Error&) {
    return false;
  }
}

void read_on(PromptCache& cache) {
  for (auto& layer : cache) {
    answered([&] { read(*layer, 1); });
    answered([&] { read(*layer, 3); });
    answered([&] { read(*layer, 1); });
  }
}

// What a program does with the file: checks that it fits the model, and goes
// on.
void generate_on(PromptCache& cache, const CacheMetadata& metadata) {
  answered([&] {
    check_saved_cache("file", cache, metadata, *fuzz_model(), nullptr);
    GenerateOptions options;
    options.prompt_cache = &cache;
    options.max_tokens = 3;
    options.prefill_step_tokens = 4;
    options.kv_bits = 8;
    options.kv_group_size = 32;
    options.quantized_kv_start = 12;
    auto steps = generate_step({7, 8, 9, 10, 11, 12}, fuzz_model(), options);
    while (auto step = steps->next()) {
      require(step->token >= 0 && step->token < ToyModel::kVocabulary,
              "tokens are the model's");
    }
  });
}

}  // namespace

bool run_cache_file_case(const std::filesystem::path& path) {
  PromptCache cache;
  CacheMetadata metadata;
  bool accepted =
      answered([&] { std::tie(cache, metadata) = load_prompt_cache(path); });
  if (!accepted) {
    return false;
  }
  answered([&] { origin_in(metadata); });
  describe_layers(cache);
  // Tensors and names, each counted twice at most.
  require(
      prompt_cache_nbytes(cache) <= 4 * std::filesystem::file_size(path) + 4096,
      "memory is bounded by the file's size");
  auto checkpoint = checkpoint_prompt_cache(cache);
  PromptCache fork = fork_prompt_cache(cache);
  PromptCache generating = fork_prompt_cache(cache);
  generate_on(generating, metadata);
  read_on(cache);
  trim_prompt_cache(cache, 2);
  read_on(fork);
  rollback_prompt_cache(cache, checkpoint);
  answered([&] { quantize_prompt_cache(cache, 0, {4, 8, 32}); });
  read_on(cache);
  answered([&] { evaluate_prompt_cache(cache); });
  std::string copy = path.string() + ".copy";
  if (answered([&] { save_prompt_cache(copy, fork, metadata); })) {
    PromptCache again = load_prompt_cache(copy).first;
    require(again.size() == fork.size(), "what was saved loads");
  }
  std::filesystem::remove(copy);
  return true;
}

}  // namespace mlxlm
