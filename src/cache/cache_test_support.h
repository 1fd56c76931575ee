// Arrays for the caches' tests.
#pragma once

#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

#include "cache/attention_cache.h"
#include "tests/support/expect_error.h"

namespace mlxlm {

// Seeded rows [B, H, L, D].
inline mx::array seeded_rows(int num_rows,
                             int seed,
                             int head_size = 8,
                             int num_heads = 2) {
  return mx::random::normal({1, num_heads, num_rows, head_size},
                            mx::float32,
                            mx::random::key(static_cast<std::uint64_t>(seed)));
}

inline bool same(const mx::array& a, const mx::array& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         mx::array_equal(a, b).item<bool>();
}

inline mx::array range(const mx::array& rows, int from, int to) {
  mx::Shape start(4, 0);
  mx::Shape stop = rows.shape();
  start[2] = from;
  stop[2] = to;
  return mx::slice(rows, start, stop);
}

inline float largest_difference(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(mx::subtract(a, b))).item<float>();
}

inline KvQuantization bits(int bits, int group_size = 32) {
  return {bits, bits, group_size};
}

// Queries, keys and values of `count` tokens from `first` of one sequence.
struct Sequence {
  explicit Sequence(int length, int head_size = 8)
      : q(seeded_rows(length, 1, head_size, 4)),
        k(seeded_rows(length, 2, head_size)),
        v(seeded_rows(length, 3, head_size)) {}

  mx::array attend(Cache& cache,
                   int first,
                   int count,
                   const AttendSpec& spec = {.scale = 0.3f}) const {
    return cache.attend(range(q, first, first + count),
                        range(k, first, first + count),
                        range(v, first, first + count),
                        spec);
  }

  mx::array q, k, v;
};

}  // namespace mlxlm
