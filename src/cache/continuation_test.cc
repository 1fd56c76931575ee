// Every kind of cache, stored in every way, continues as if nothing had been
// done to it: read again, saved and loaded, rolled back, forked.
#include <functional>
#include <optional>
#include <string>

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

constexpr int kVocabulary = 40;
constexpr int kWidth = 32;  // of the model and of a head
constexpr int kHeads = 4;
constexpr int kKvHeads = 2;

// A model of one layer for each cache, which it adds to the embeddings:
// attention where there are keys and values, else a recurrence
// h = tanh(h A + x), the average of h and x.
class ToyModel {
 public:
  // Tokens -> the logits of the last, [V].
  mx::array read(PromptCache& cache, const std::vector<int>& tokens) const {
    int count = static_cast<int>(tokens.size());
    auto x = mx::take(
        embedding_, mx::array(tokens.begin(), {1, count}, mx::int32), 0);
    for (std::size_t i = 0; i < cache.size(); ++i) {
      x = layer(*cache[i], x, static_cast<int>(i));
    }
    x = mx::slice(x, {0, count - 1, 0}, {1, count, kWidth});
    auto logits = mx::flatten(mx::matmul(x, mx::transpose(embedding_)));
    logits.eval();
    return logits;
  }

 private:
  mx::array layer(Cache& cache, const mx::array& x, int index) const {
    if (auto* list = dynamic_cast<CacheList*>(&cache)) {
      auto y = x;
      for (std::size_t i = 0; i < list->count(); ++i) {
        y = layer(*(*list)[i], y, index * 7 + static_cast<int>(i) + 1);
      }
      return y;
    }
    if (auto* arrays = dynamic_cast<ArraysCache*>(&cache)) {
      return recur(*arrays, x, index);
    }
    auto project = [&](int which, int heads) {
      auto y = mx::matmul(x, weight(kWidth * heads, index * 3 + which));
      y = mx::reshape(y, {1, x.shape(1), heads, kWidth});
      return mx::transpose(y, {0, 2, 1, 3});
    };
    auto y = cache.attend(project(0, kHeads),
                          project(1, kKvHeads),
                          project(2, kKvHeads),
                          {.scale = 0.2f});
    y = mx::reshape(mx::transpose(y, {0, 2, 1, 3}),
                    {1, x.shape(1), kHeads, kWidth});
    return mx::add(x, mx::mean(y, 2));
  }

  mx::array recur(ArraysCache& cache, const mx::array& x, int index) const {
    auto h = cache[0] ? *cache[0] : mx::zeros({1, 1, kWidth});
    auto a = weight(kWidth, index * 3);
    std::vector<mx::array> states;
    for (int i = 0; i < x.shape(1); ++i) {
      auto token = mx::slice(x, {0, i, 0}, {1, i + 1, kWidth});
      h = mx::tanh(mx::add(mx::matmul(h, a), token));
      states.push_back(h);
    }
    cache.set(0, h);
    cache.set(1, mx::array({static_cast<float>(x.shape(1))}));
    return mx::add(x, mx::concatenate(states, 1));
  }

  static mx::array weight(int columns, int seed) {
    auto key = mx::random::key(static_cast<std::uint64_t>(seed) + 50);
    return mx::multiply(mx::random::normal({kWidth, columns}, mx::float32, key),
                        mx::array(0.3f));
  }

  mx::array embedding_ = mx::random::normal(
      {kVocabulary, kWidth}, mx::float32, mx::random::key(1));
};

struct Kind {
  const char* name;
  std::function<CachePtr()> make;
  const char* quantized_class;  // null: left as it is
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> kKinds = {
      {"KVCache", [] { return make_kv_cache(); }, "QuantizedKVCache"},
      {"RotatingKVCache",
       [] { return make_rotating_cache(12); },
       "QuantizedRotatingKVCache"},
      {"RotatingKVCache with kept tokens",
       [] { return make_rotating_cache(12, 3); },
       "QuantizedRotatingKVCache"},
      {"ConcatenateKVCache",
       [] { return make_concatenate_cache(); },
       "QuantizedKVCache"},
      {"ChunkedKVCache",
       [] { return make_chunked_cache(6); },
       "QuantizedChunkedKVCache"},
      {"ArraysCache", [] { return make_arrays_cache(2); }, nullptr},
      {"CacheList of two attentions",
       [] {
         return make_cache_list({make_kv_cache(), make_rotating_cache(8)});
       },
       "CacheList"},
      {"CacheList with a recurrence",
       [] {
         return make_cache_list({make_arrays_cache(2), make_kv_cache()});
       },
       "CacheList"},
  };
  return kKinds;
}

struct Storage {
  const char* name;
  std::optional<KvQuantization> quantization;
  int start = 0;  // tokens before it is quantized
};

const std::vector<Storage>& storages() {
  static const std::vector<Storage> kStorages = {
      {"float", std::nullopt},
      {"8 bits", bits(8)},
      {"4 bits", bits(4)},
      {"8 bits for keys, 4 for values", KvQuantization{8, 4, 32}},
      {"4 bits from token 16 on", bits(4), 16},
  };
  return kStorages;
}

using Parts = std::vector<std::vector<int>>;

// Seeded tokens in parts of these lengths.
Parts parts(int seed, const std::vector<int>& lengths) {
  Parts made;
  unsigned state = static_cast<unsigned>(seed);
  for (int length : lengths) {
    made.emplace_back();
    for (int i = 0; i < length; ++i) {
      state = state * 1103515245u + 12345u;
      made.back().push_back(static_cast<int>(state >> 16) % kVocabulary);
    }
  }
  return made;
}

const Parts kPrompt = parts(1, {7, 9, 1, 1, 5, 1, 1, 1});
const Parts kNext = parts(2, {1, 1, 6, 1, 1, 1});
const Parts kOther = parts(3, {1, 4, 1, 1, 14, 1});

class Continuation {
 public:
  Continuation(const Kind& kind, const Storage& storage)
      : kind_(kind), storage_(storage) {}

  // Two layers of the kind with the prompt read.
  PromptCache prompted() const {
    PromptCache cache{kind_.make(), kind_.make()};
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
  ToyModel model_;
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
  EXPECT_EQ(num_cells, 8 * 5 * 6);
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
