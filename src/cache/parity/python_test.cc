// Prompt-cache files through the reference itself: it reads ours, reads on and
// saves; we read its file and find what we hold after the same tokens.
// MLXLM_REFERENCE_PYTHON names a Python with mlx-lm.
#include <cstdlib>

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "cache/state_tree.h"
#include "core/file.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

constexpr char kProgram[] = R"(
import sys
import mlx.core as mx
from mlx_lm.models import cache as C

source, target, more = sys.argv[1:4]
layers, metadata = C.load_prompt_cache(source, return_metadata=True)
assert metadata["model"] == "a/b", metadata
assert metadata["mlxlm"]["tokens"] == "1,2,3", metadata
k, v = mx.load(more)["k"], mx.load(more)["v"]

def read_on(layer):
    if isinstance(layer, C.CacheList):
        for part in layer.caches:
            read_on(part)
    elif isinstance(layer, C.ArraysCache):
        layer[0] = layer[0] + 1
        layer.advance(2)
    else:
        if isinstance(layer, C.ChunkedKVCache):
            layer.maybe_trim_front()
        for i in range(3):
            layer.update_and_fetch(k[:, :, i : i + 1], v[:, :, i : i + 1])
        layer.update_and_fetch(k[:, :, 3:], v[:, :, 3:])

for layer in layers:
    read_on(layer)
C.save_prompt_cache(target, layers, {"model": "c/d"})
)";

// As the program above.
void read_on(Cache& layer, const mx::array& k, const mx::array& v) {
  if (auto* list = dynamic_cast<CacheList*>(&layer)) {
    for (std::size_t i = 0; i < list->count(); ++i) {
      read_on(*(*list)[i], k, v);
    }
  } else if (auto* arrays = dynamic_cast<ArraysCache*>(&layer)) {
    arrays->set(0, mx::add(*(*arrays)[0], mx::array(1.0f)));
    arrays->advance(2);
  } else {
    if (auto* chunked = dynamic_cast<ChunkedKVCache*>(&layer)) {
      chunked->trim_front();
    }
    auto& attention = dynamic_cast<AttentionCache&>(layer);
    for (int i = 0; i < 3; ++i) {
      attention.update(range(k, i, i + 1), range(v, i, i + 1));
    }
    attention.update(range(k, 3, k.shape(2)), range(v, 3, v.shape(2)));
  }
}

PromptCache every_kind(const Sequence& s) {
  auto arrays = std::make_shared<ArraysCache>(2, std::vector<int>{1});
  arrays->set(0, mx::ones({1, 3}));
  PromptCache cache{
      make_kv_cache(),
      make_quantized_cache(bits(4)),
      make_quantized_cache(bits(8)),
      make_rotating_cache(8),
      make_rotating_cache(100, 4),
      make_concatenate_cache(),
      make_chunked_cache(6),
      arrays,
      make_cache_list({make_kv_cache(), make_rotating_cache(9, 2)})};
  for (const auto& layer : cache) {
    if (auto* list = dynamic_cast<CacheList*>(layer.get())) {
      s.attend(*(*list)[0], 0, 11);
      s.attend(*(*list)[1], 0, 11);
    } else if (layer->capabilities().attends) {
      s.attend(*layer, 0, 11);
    }
  }
  return cache;
}

void expect_same_states(const PromptCache& one, const PromptCache& other) {
  ASSERT_EQ(one.size(), other.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    SCOPED_TRACE("layer " + std::to_string(i));
    ASSERT_EQ(one[i]->kind(), other[i]->kind());
    auto a = flatten_states({one[i]->state()});
    auto b = flatten_states({other[i]->state()});
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t j = 0; j < a.size(); ++j) {
      EXPECT_EQ(a[j].first, b[j].first);
      if (auto* array = std::get_if<mx::array>(&a[j].second.value)) {
        auto* second = std::get_if<mx::array>(&b[j].second.value);
        ASSERT_TRUE(second) << a[j].first;
        EXPECT_TRUE(same(*array, *second)) << a[j].first;
      } else if (auto* number = std::get_if<int>(&a[j].second.value)) {
        EXPECT_EQ(*number, std::get<int>(b[j].second.value)) << a[j].first;
      }
    }
  }
}

TEST(CachePython, TheReferenceReadsOurFilesAndWeItsOwn) {
  const char* python = std::getenv("MLXLM_REFERENCE_PYTHON");
  if (python == nullptr || *python == '\0') {
    GTEST_SKIP() << "MLXLM_REFERENCE_PYTHON is not set: no Python with mlx-lm";
  }
  TemporaryFolder folder;
  std::string source = folder / "ours.safetensors";
  std::string target = folder / "theirs.safetensors";
  Sequence s(20, 32);
  PromptCache cache = every_kind(s);
  CacheMetadata metadata{{"model", "a/b"}};
  metadata.merge(metadata_of({.tokens = std::vector<int>{1, 2, 3}}, cache));
  save_prompt_cache(source, cache, metadata);
  auto k = range(s.k, 11, 18);
  auto v = range(s.v, 11, 18);
  std::string more = folder / "next.safetensors";
  mx::save_safetensors(more, {{"k", k}, {"v", v}});
  write_file_atomically(folder / "program.py", kProgram);
  ProcessResult result =
      run_process({python, folder / "program.py", source, target, more},
                  {.time_limit = std::chrono::seconds(120)});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  auto [theirs, noted] = load_prompt_cache(target);
  EXPECT_EQ(noted.at("model"), "c/d");
  EXPECT_FALSE(origin_in(noted));
  for (const auto& layer : cache) {
    read_on(*layer, k, v);
  }
  expect_same_states(theirs, cache);
}

}  // namespace
}  // namespace mlxlm
