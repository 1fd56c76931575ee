// Products of queries with blocks of keys: of few queries with keys where they
// lie, of tiles of queries with transposed keys; the same bits both ways.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/cpu/attention_rows-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

// Keys per block and queries per tile: the block's scores and the transposed
// keys stay in the first-level cache.
inline constexpr int kKeyBlock = 64;
inline constexpr int kQueryTile = kHas32Registers ? 8 : 4;

// Lanes of two vectors side by side, in which way depends on how many keys they
// are of together: with 2, a lane of each in turn; with 4, two of each; with
// more, blocks of four, the even ones or the odd ones.
template <int kKeys, bool kSecond, int... i>
static inline Floats mix_keys(Floats a,
                              Floats b,
                              std::integer_sequence<int, i...>) {
  auto source = [](int lane) {
    const int block = lane / 4 * 4;
    const int at = lane % 4;
    if (kKeys == 2) {
      return at % 2 * kLanes + block + at / 2 + (kSecond ? 2 : 0);
    }
    if (kKeys == 4) {
      return at / 2 * kLanes + block + at % 2 + (kSecond ? 2 : 0);
    }
    const bool of_b = lane >= kLanes / 2;
    return (of_b ? kLanes : 0) + block % (kLanes / 2) * 2 + at +
           (kSecond ? 4 : 0);
  };
  return __builtin_shufflevector(a, b, source(i)...);
}

// A step of adding up lanes of kKeys keys, half of them in a, half in b.
template <int kKeys>
static inline Floats add_up(Floats a, Floats b) {
  constexpr std::make_integer_sequence<int, kLanes> kAll;
  return mix_keys<kKeys, false>(a, b, kAll) + mix_keys<kKeys, true>(a, b, kAll);
}

// Rows up to which keys are read where they lie: a transposed block pays for
// itself from some more on. Five and more are code for the usual form only.
static int most_few_rows(const HeadRows& keys) {
  if (keys.bits == 16) return kQueryTile;
  return keys.bits == 32 || keys.bits == 8 || keys.bits == 4 ? 4 : 0;
}

// A block of keys where they lie, and few queries. kHeadSize: 0 where only
// `head_size` tells.
template <class Keys, int kHeadSize = 0>
struct FewRows {
  Keys keys;
  int last;  // key
  int head_size;
  const float* queries;  // [., head_size]
  RowBytes key_bytes;
  RowBytes value_bytes;
  bool starts;  // the first block, whose values nobody has asked for

  int size() const { return kHeadSize > 0 ? kHeadSize : head_size; }
  auto key(int j) const { return keys[j < last ? j : last]; }
  // The next block's keys; its values are asked for while this one's are added.
  inline __attribute__((always_inline)) void ask_for_next(int j) const {
    key_bytes.ask_for(j + kKeyBlock);
    if (starts) value_bytes.ask_for(j);
  }
};

// kFew queries' products with kKeys keys from j on, their lanes added up as far
// as that many keys fill a vector.
template <int kFew, int kKeys, class Rows>
static inline __attribute__((always_inline)) void few_products(
    const Rows& r, int j, Floats (&sum)[kFew]) {
  Floats other[kFew] = {};
  if constexpr (kKeys == 2) {
    unroll<kFew>([&]<int i>() { sum[i] = Floats{}; });
    r.ask_for_next(j);
    r.ask_for_next(j + 1);
    const auto a = r.key(j);
    const auto b = r.key(j + 1);
    for_each_vector(
        r.size(), [&](int d, int size) __attribute__((always_inline)) {
          const Floats x = load_at(a, d, size);
          const Floats y = load_at(b, d, size);
          unroll<kFew>([&]<int i>() __attribute__((always_inline)) {
            const Floats q =
                in_register(load_some(r.queries + i * r.size() + d, size));
            sum[i] = multiply_add(x, q, sum[i]);
            other[i] = multiply_add(y, q, other[i]);
          });
        });
  } else {
    few_products<kFew, kKeys / 2>(r, j, sum);
    few_products<kFew, kKeys / 2>(r, j + kKeys / 2, other);
  }
  unroll<kFew>([&]<int i>() { sum[i] = add_up<kKeys>(sum[i], other[i]); });
}

// scores[i, j] of kFew rows: each key is read once.
template <int kFew, class Rows>
static void few_scores(const Rows& r, float* scores) {
  for (int j = 0; j <= r.last; j += kLanes) {
    Floats sum[kFew];
    few_products<kFew, kLanes>(r, j, sum);
    unroll<kFew>([&]<int i>() { store(sum[i], scores + i * kKeyBlock + j); });
  }
}

template <int kFew, int kMost, class Rows>
static void few_scores_of(const Rows& r, int num_rows, float* scores) {
  if (num_rows == kFew) return few_scores<kFew>(r, scores);
  if constexpr (kFew < kMost) {
    few_scores_of<kFew + 1, kMost>(r, num_rows, scores);
  }
}

// `count` keys transposed, zeros behind them.
template <class Keys>
static void transpose_keys(const Keys& all,
                           int count,
                           int head_size,
                           float* keys) {
  for (int j = 0; j < count; j += kLanes, keys += head_size * kLanes) {
    const int left = count - j;
    interleave_rows(
        left < kLanes ? left : kLanes,
        kLanes,
        head_size,
        keys,
        [&](int i, int d, int size) { return load_at(all[j + i], d, size); });
  }
}

// sum[i] += keys' elements of kCount of a vector's lanes, `lane` the first of
// them, times query i's, in the order in which few_products() adds them up.
template <int kCount>
static inline __attribute__((always_inline)) void add_lanes(
    const float* queries,
    const float* keys,
    int head_size,
    int lane,
    Floats (&sum)[kQueryTile]) {
  if constexpr (kCount == 1) {
    for (int d = lane; d < head_size; d += kLanes) {
      const Floats key = load(keys + d * kLanes);
      const float* q = queries + d * kQueryTile;
      unroll<kQueryTile>(
          [&]<int i>() { sum[i] = multiply_add(key, splat(q[i]), sum[i]); });
    }
  } else {
    // Of four: the first and third, the second and fourth.
    constexpr int kApart = kCount == 4 ? 1 : kCount == 2 ? 2 : kCount / 2;
    Floats other[kQueryTile] = {};
    add_lanes<kCount / 2>(queries, keys, head_size, lane, sum);
    add_lanes<kCount / 2>(queries, keys, head_size, lane + kApart, other);
    unroll<kQueryTile>([&]<int i>() { sum[i] += other[i]; });
  }
}

// scores[i, j] of kQueryTile queries with a block of transposed keys, bit for
// bit those of few_scores().
static void tile_scores(const float* queries,
                        const float* block,
                        int head_size,
                        int count,
                        float* scores) {
  for (int j = 0; j < count; j += kLanes) {
    const float* keys = block + (j / kLanes) * head_size * kLanes;
    Floats sum[kQueryTile] = {};
    add_lanes<kLanes>(queries, keys, head_size, 0, sum);
    unroll<kQueryTile>(
        [&]<int i>() { store(sum[i], scores + i * kKeyBlock + j); });
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
