// Every kind of cache, stored in every way, continues as if nothing had been
// done to it: read again, saved and loaded, rolled back, forked.
#include <functional>
#include <string>

#include <mlx/mlx.h>

#include "cache/attention_cache.h"
#include "cache/cache_list.h"
#include "cache/toy_layers.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

const Parts kPrompt = parts(1, {7, 9, 1, 1, 5, 1, 1, 1});
const Parts kNext = parts(2, {1, 1, 6, 1, 1, 1});
const Parts kOther = parts(3, {1, 4, 1, 1, 14, 1});

void keep_halves(Cache& cache) {
  if (auto* attention = dynamic_cast<AttentionCache*>(&cache)) {
    attention->keep_halves();
  } else if (auto* list = dynamic_cast<CacheList*>(&cache)) {
    for (std::size_t i = 0; i < list->count(); ++i) keep_halves(*(*list)[i]);
  }
}

class Continuation {
 public:
  Continuation(const Kind& kind, const Storage& storage)
      : kind_(kind), storage_(storage) {}

  // Two layers of the kind with the prompt read.
  PromptCache prompted() const {
    PromptCache cache{kind_.make(), kind_.make()};
    if (storage_.halves) {
      for (const auto& layer : cache) keep_halves(*layer);
    }
    read(cache, kPrompt);
    return cache;
  }

  // The logits after each part.
  std::vector<mx::array> read(PromptCache& cache, const Parts& parts) const {
    std::vector<mx::array> logits;
    for (const auto& part : parts) {
      if (storage_.quantization && num_read(cache) >= storage_.start) {
        quantize_prompt_cache(cache, 0, *storage_.quantization);
      }
      logits.push_back(model_.read(cache, part));
    }
    return logits;
  }

  void expect_next(PromptCache& cache,
                   const std::vector<mx::array>& expected) const {
    auto actual = read(cache, kNext);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(same(actual[i], expected[i])) << "part " << i;
    }
  }

  void expect_stored_as_wanted(const PromptCache& cache) const {
    for (const auto& layer : cache) {
      if (!storage_.quantization || kind_.quantized_class == nullptr) {
        EXPECT_TRUE(std::string(kind_.name).starts_with(layer->kind()));
        EXPECT_FALSE(layer->capabilities().quantization);
      } else {
        EXPECT_EQ(layer->kind(), kind_.quantized_class);
        EXPECT_EQ(layer->capabilities().quantization, storage_.quantization);
      }
    }
  }

 private:
  // A recurrent state doesn't count; all layers have read the same.
  int num_read(const PromptCache& cache) const {
    return prompt_cache_offset(cache);
  }

  const Kind& kind_;
  const Storage& storage_;
  ToyLayers model_;
};

using Way = std::function<PromptCache(const Continuation&)>;

struct NamedWay {
  const char* name;
  Way way;
};

PromptCache through_a_file(const PromptCache& cache) {
  TemporaryFolder folder;
  save_prompt_cache(folder / "cache.safetensors", cache, {{"a", "b"}});
  return load_prompt_cache(folder / "cache.safetensors").first;
}

const std::vector<NamedWay>& ways() {
  static const std::vector<NamedWay> kWays = {
      {"fresh", [](const Continuation& c) { return c.prompted(); }},
      {"saved and loaded",
       [](const Continuation& c) { return through_a_file(c.prompted()); }},
      {"rolled back",
       [](const Continuation& c) {
         auto cache = c.prompted();
         auto checkpoint = checkpoint_prompt_cache(cache);
         c.read(cache, kOther);
         rollback_prompt_cache(cache, checkpoint);
         return cache;
       }},
      {"rolled back twice, to where it was loaded",
       [](const Continuation& c) {
         auto cache = through_a_file(c.prompted());
         auto checkpoint = checkpoint_prompt_cache(cache);
         c.read(cache, kOther);
         rollback_prompt_cache(cache, checkpoint);
         c.read(cache, kNext);
         trim_prompt_cache(cache, 20);
         c.read(cache, kOther);
         rollback_prompt_cache(cache, checkpoint);
         return cache;
       }},
      {"forked, the fork",
       [](const Continuation& c) {
         auto cache = c.prompted();
         auto fork = fork_prompt_cache(cache);
         c.read(cache, kOther);
         return fork;
       }},
      {"forked, the fork after it was saved",
       [](const Continuation& c) {
         auto cache = c.prompted();
         auto fork = fork_prompt_cache(cache);
         through_a_file(fork);
         c.read(cache, kOther);
         return fork;
       }},
      {"loaded and forked, the fork",
       [](const Continuation& c) {
         auto cache = through_a_file(c.prompted());
         auto fork = fork_prompt_cache(cache);
         c.read(cache, kOther);
         return fork;
       }},
      {"forked, the original",
       [](const Continuation& c) {
         auto cache = c.prompted();
         auto fork = fork_prompt_cache(cache);
         c.read(fork, kOther);
         return cache;
       }},
  };
  return kWays;
}

TEST(Continuation, EqualsTheUninterruptedRun) {
  int num_cells = 0;
  for (const Kind& kind : kinds()) {
    for (const Storage& storage : storages()) {
      Continuation c(kind, storage);
      auto cache = c.prompted();
      auto expected = c.read(cache, kNext);
      c.expect_stored_as_wanted(cache);
      for (const NamedWay& way : ways()) {
        SCOPED_TRACE(std::string(kind.name) + ", " + storage.name + ", " +
                     way.name);
        auto other = way.way(c);
        c.expect_next(other, expected);
        c.expect_stored_as_wanted(other);
        ++num_cells;
      }
    }
  }
  EXPECT_EQ(num_cells, 8 * 7 * 8);
}

// Where a cache says that it can go back, trimming is as exact.
TEST(Continuation, TrimmingEqualsNeverHavingRead) {
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    Continuation c(kind, storages()[0]);
    auto cache = c.prompted();
    auto expected = c.read(cache, kNext);
    auto other = c.prompted();
    c.read(other, {{1, 2}});
    bool possible = trimmable_tokens(other) >= 2;
    bool growing = std::string(kind.name) == "KVCache" ||
                   std::string(kind.name) == "ConcatenateKVCache";
    EXPECT_TRUE(possible || !growing);
    EXPECT_EQ(trim_prompt_cache(other, possible ? 2 : 0), possible ? 2 : 0);
    if (possible && growing) {
      c.expect_next(other, expected);
    }
  }
}

TEST(Continuation, CheckpointsCostWhatTheySay) {
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    Continuation c(kind, storages()[0]);
    auto cache = c.prompted();
    for (const auto& layer : cache) {
      auto can = layer->capabilities();
      EXPECT_LE(can.checkpoint_bytes, layer->nbytes());
      EXPECT_EQ(can.checkpoint_bytes == 0, can.always_trimmable);
      EXPECT_EQ(can.quantizable, kind.quantized_class != nullptr);
    }
  }
}

}  // namespace
}  // namespace mlxlm
