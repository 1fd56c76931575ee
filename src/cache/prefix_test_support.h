// Caches whose rows say which tokens they stand for.
#pragma once

#include <random>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include "cache/cache_test_support.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"

namespace mlxlm {

using Tokens = std::vector<int>;

inline Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// `count` tokens of a small alphabet, so that beginnings are often the same.
inline Tokens random_tokens(std::mt19937& random, int count) {
  Tokens tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int>(random() % 3));
  }
  return tokens;
}

inline Tokens counted(int first, int count) {
  Tokens tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(first + i);
  }
  return tokens;
}

// Reads the tokens into a cache of attention: each row is its token.
inline void read_tokens(Cache& cache, const Tokens& tokens) {
  std::vector<float> rows;
  for (int token : tokens) {
    rows.insert(rows.end(), 2 * 4, static_cast<float>(token));
  }
  auto array = mx::array(
      rows.begin(), {1, static_cast<int>(tokens.size()), 2, 4}, mx::float32);
  array = mx::contiguous(mx::transpose(array, {0, 2, 1, 3}));
  dynamic_cast<AttentionCache&>(cache).update(array, array);
}

inline PromptCache growing(const Tokens& tokens) {
  PromptCache cache{make_kv_cache(), make_kv_cache()};
  for (auto& layer : cache) {
    read_tokens(*layer, tokens);
  }
  return cache;
}

// A growing and a rotating layer.
inline PromptCache windowed(const Tokens& tokens, int window = 4) {
  PromptCache cache{make_kv_cache(), make_rotating_cache(window)};
  for (auto& layer : cache) {
    read_tokens(*layer, tokens);
  }
  return cache;
}

// The tokens that a growing layer has read.
inline Tokens tokens_in(const Cache& cache) {
  const auto& kv = dynamic_cast<const KVCache&>(cache);
  if (kv.offset() == 0) {
    return {};
  }
  auto keys = kv.keys_and_values().keys.plain();
  keys = mx::slice(keys, {0, 1, 0, 2}, {1, 2, kv.offset(), 3});
  keys = mx::contiguous(mx::astype(mx::flatten(keys), mx::int32));
  keys.eval();
  return {keys.data<int>(), keys.data<int>() + keys.size()};
}

inline Tokens first(const Tokens& tokens, int count) {
  return {tokens.begin(), tokens.begin() + count};
}

}  // namespace mlxlm
