// What queries see of keys: create_attention_mask and create_causal_mask of
// the reference.
#pragma once

#include <optional>

#include <mlx/array.h>

#include <mlxlm/cache.h>

namespace mlxlm {

// All keys, those up to the query's own position, or an array [L, T] or [T]
// of booleans.
struct Mask {
  bool causal = false;
  std::optional<mx::array> array;

  static Mask none() { return {}; }
  static Mask causally() { return {true, std::nullopt}; }
  static Mask of(mx::array array) { return {false, std::move(array)}; }
};

// For `num_queries` after `offset` keys that are all held in order.
// `want_array`: an array wherever not all keys are seen.
Mask attention_mask(int num_queries,
                    int offset,
                    int window_tokens,
                    bool want_array = false);

// Attention without a cache: shapes as Cache::attend().
mx::array attend_without_cache(const mx::array& q,
                               const mx::array& k,
                               const mx::array& v,
                               const AttendSpec& spec);

}  // namespace mlxlm
