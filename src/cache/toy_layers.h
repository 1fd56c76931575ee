// Toy models over every kind of cache, stored in every way.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"

namespace mlxlm {

inline constexpr int kVocabulary = 40;
inline constexpr int kWidth = 32;  // of the model and of a head
inline constexpr int kHeads = 4;
inline constexpr int kKvHeads = 2;

// A model of one layer for each cache, which it adds to the embeddings:
// attention where there are keys and values, else a recurrence
// h = tanh(h A + x), the average of h and x.
class ToyLayers {
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

inline const std::vector<Kind>& kinds() {
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
  bool halves = false;
};

inline const std::vector<Storage>& storages() {
  static const std::vector<Storage> kStorages = {
      {"float", std::nullopt},
      {"8 bits", bits(8)},
      {"4 bits", bits(4)},
      {"8 bits for keys, 4 for values", KvQuantization{8, 4, 32}},
      {"4 bits from token 16 on", bits(4), 16},
      {"halves", std::nullopt, 0, true},
      {"halves, 4 bits from token 16 on", bits(4), 16, true},
  };
  return kStorages;
}

using Parts = std::vector<std::vector<int>>;

// Seeded tokens in parts of these lengths.
inline Parts parts(int seed, const std::vector<int>& lengths) {
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

}  // namespace mlxlm
