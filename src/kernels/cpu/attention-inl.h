// Attention in one pass over the keys (online softmax: Milakov and Gimelshein
// 2018; tiles: Dao et al. 2022), so no matrix of all scores exists.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/cpu/attention_rows-inl.h"
#include "kernels/cpu/matmul-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

// Keys per block and queries per tile: the block's scores and the transposed
// keys stay in the first-level cache.
inline constexpr int kKeyBlock = 64;
inline constexpr int kQueryTile = kHas32Registers ? 8 : 4;
inline constexpr float kNothing = -__builtin_inff();

struct AttentionScratch {
  float* queries;  // scaled, [num_rows, head_size] where there are few, else
                   // [tiles][head_size][kQueryTile]
  float* keys;     // [kKeyBlock / kLanes][head_size][kLanes]
  float* scores;   // [kQueryTile, kKeyBlock]
  float* values;   // [kKeyBlock, value_size] of those that aren't float
};

static int padded_rows(int num_rows) {
  return (num_rows + kQueryTile - 1) / kQueryTile * kQueryTile;
}

static std::size_t attention_scratch_floats(const AttentionTask& t) {
  return static_cast<std::size_t>(t.head_size) *
             (padded_rows(t.num_rows()) + kKeyBlock) +
         static_cast<std::size_t>(t.value_size + kQueryTile) * kKeyBlock;
}

static AttentionScratch split_scratch(const AttentionTask& t, float* scratch) {
  AttentionScratch s;
  s.queries = scratch;
  s.keys = s.queries +
           static_cast<std::size_t>(t.head_size) * padded_rows(t.num_rows());
  s.scores = s.keys + t.head_size * kKeyBlock;
  s.values = s.scores + kQueryTile * kKeyBlock;
  return s;
}

// `count` keys transposed, zeros behind them.
template <class Keys>
static void transpose_keys(const Keys& all,
                           int count,
                           int head_size,
                           float* keys) {
  for (int j = 0; j < count; j += kLanes, keys += head_size * kLanes) {
    for_each_vector(head_size, [&](int d, int size) {
      Floats rows[kLanes] = {};
      for (int i = 0; i < kLanes && j + i < count; ++i) {
        rows[i] = load_at(all[j + i], d, size);
      }
      transpose(rows);
      for (int i = 0; i < size; ++i) store(rows[i], keys + (d + i) * kLanes);
    });
  }
}

// One step of sum_of() for two vectors: the sums of lanes that lie kDistance
// apart, a's where a lane's number has no kDistance in it, b's elsewhere.
template <int kDistance>
static inline Floats add_apart(Floats a, Floats b) {
  constexpr std::make_integer_sequence<int, kLanes> kAll;
  return mix_these<kDistance, false>(a, b, kAll) +
         mix_these<kDistance, true>(a, b, kAll);
}

// Rows up to which keys are read where they lie: a transposed block pays for
// itself from some more on. Five and more are code for the usual form only.
static int most_few_rows(const HeadRows& keys) {
  if (keys.bits == 16) return kQueryTile;
  return keys.bits == 32 || keys.bits == 8 || keys.bits == 4 ? 4 : 0;
}

// A block of keys where they lie, and few queries.
template <class Keys>
struct FewRows {
  Keys keys;
  int last;  // key
  int head_size;
  const float* queries;  // [., head_size]
  RowBytes key_bytes;
  RowBytes value_bytes;

  auto key(int j) const { return keys[j < last ? j : last]; }
  // The block's values come next, and the next block's keys.
  inline __attribute__((always_inline)) void ask_for_next(int j) const {
    key_bytes.ask_for(j + kKeyBlock);
    value_bytes.ask_for(j);
  }
};

// The lanes of kFew queries' products with the keys from j on that lie kStride
// apart, of each kStride lanes added up.
template <int kFew, int kStride, class Keys>
static inline __attribute__((always_inline)) void few_products(
    const FewRows<Keys>& r, int j, Floats (&sum)[kFew]) {
  Floats other[kFew] = {};
  if constexpr (kStride >= kLanes / 2) {
    unroll<kFew>([&]<int i>() { sum[i] = Floats{}; });
    r.ask_for_next(j);
    r.ask_for_next(j + kStride);
    const auto a = r.key(j);
    const auto b = r.key(j + kStride);
    for_each_vector(
        r.head_size, [&](int d, int size) __attribute__((always_inline)) {
          const Floats x = load_at(a, d, size);
          const Floats y = load_at(b, d, size);
          unroll<kFew>([&]<int i>() __attribute__((always_inline)) {
            const Floats q = load_some(r.queries + i * r.head_size + d, size);
            sum[i] = multiply_add(x, q, sum[i]);
            other[i] = multiply_add(y, q, other[i]);
          });
        });
  } else {
    few_products<kFew, 2 * kStride>(r, j, sum);
    few_products<kFew, 2 * kStride>(r, j + kStride, other);
  }
  unroll<kFew>([&]<int i>() { sum[i] = add_apart<kStride>(sum[i], other[i]); });
}

// scores[i, j] of kFew rows: each key is read once.
template <int kFew, class Keys>
static void few_scores(const FewRows<Keys>& r, float* scores) {
  for (int j = 0; j <= r.last; j += kLanes) {
    Floats sum[kFew];
    few_products<kFew, 1>(r, j, sum);
    unroll<kFew>([&]<int i>() { store(sum[i], scores + i * kKeyBlock + j); });
  }
}

template <int kFew, int kMost, class Keys>
static void few_scores_of(const FewRows<Keys>& r, int num_rows, float* scores) {
  if (num_rows == kFew) return few_scores<kFew>(r, scores);
  if constexpr (kFew < kMost) {
    few_scores_of<kFew + 1, kMost>(r, num_rows, scores);
  }
}

// sum[i] += keys' elements lane, lane + kStride, ... times query i's, in the
// order in which sum_of() adds a vector's lanes.
template <int kStride>
static inline __attribute__((always_inline)) void add_lanes(
    const float* queries,
    const float* keys,
    int head_size,
    int lane,
    Floats (&sum)[kQueryTile]) {
  if constexpr (kStride == kLanes) {
    for (int d = lane; d < head_size; d += kLanes) {
      const Floats key = load(keys + d * kLanes);
      const float* q = queries + d * kQueryTile;
      unroll<kQueryTile>(
          [&]<int i>() { sum[i] = multiply_add(key, splat(q[i]), sum[i]); });
    }
  } else {
    Floats other[kQueryTile] = {};
    add_lanes<2 * kStride>(queries, keys, head_size, lane, sum);
    add_lanes<2 * kStride>(queries, keys, head_size, lane + kStride, other);
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
    add_lanes<1>(queries, keys, head_size, 0, sum);
    unroll<kQueryTile>(
        [&]<int i>() { store(sum[i], scores + i * kKeyBlock + j); });
  }
}

// Softcap and masks of one query's block of scores; the largest that is left.
static float finish_scores(
    const AttentionTask& t, int row, int first, int count, float* scores) {
  const int query = row % t.num_queries;
  if (t.softcap > 0.0f) {
    for (int j = 0; j < count; j += kLanes) {
      store(tanh_of(load(scores + j) / t.softcap) * t.softcap, scores + j);
    }
  }
  const std::ptrdiff_t mask =
      row / t.num_queries * t.mask_head_stride + query * t.mask_query_stride;
  if (t.mask_bool != nullptr) {
    for (int j = 0; j < count; ++j) {
      if (!t.mask_bool[mask + (first + j) * t.mask_key_stride]) {
        scores[j] = kNothing;
      }
    }
  } else if (t.mask_add != nullptr) {
    for (int j = 0; j < count; ++j) {
      scores[j] += t.mask_add[mask + (first + j) * t.mask_key_stride];
    }
  }
  if (t.causal) {
    int seen = t.causal_end + query - first;
    for (int j = seen < 0 ? 0 : seen; j < count; ++j) {
      scores[j] = kNothing;
    }
  }
  for (int j = count; j < kKeyBlock; ++j) {
    scores[j] = kNothing;
  }
  Floats largest = splat(kNothing);
  for (int j = 0; j < kKeyBlock; j += kLanes) {
    largest = maximum(largest, load(scores + j));
  }
  return largest_of(largest);
}

// Scores become weights relative to `largest`; returns their sum.
static float exponentiate(float* scores, float largest) {
  Floats sum = {};
  for (int j = 0; j < kKeyBlock; j += kLanes) {
    Floats s = load(scores + j);
    Floats w = s == splat(kNothing) ? Floats{} : exponential(s - largest);
    store(w, scores + j);
    sum += w;
  }
  return sum_of(sum);
}

// What a block of scores makes of a row's result so far.
struct RowUpdate {
  const float* weights;  // of the block's keys
  float rescale;
  float* out;
};

// kVectors vectors of the results of kRows rows, from dimension d on: out *
// rescale + the sum over j, in order, of weights[j] * values[j]. Each value is
// read once for all rows.
template <int kRows, int kVectors, class Values>
static inline __attribute__((always_inline)) void add_values_at(
    const Values& values, const RowUpdate* rows, int count, int d) {
  Floats sum[kRows][kVectors];
  unroll<kRows>([&]<int r>() {
    unroll<kVectors>([&]<int i>() {
      sum[r][i] = load(rows[r].out + d + i * kLanes) * rows[r].rescale;
    });
  });
  for (int j = 0; j < count; ++j) {
    const auto row = values[j];
    Floats value[kVectors];
    unroll<kVectors>([&]<int i>() __attribute__((always_inline)) {
      value[i] = load_at(row, d + i * kLanes, kLanes);
    });
    unroll<kRows>([&]<int r>() {
      const Floats weight = splat(rows[r].weights[j]);
      unroll<kVectors>([&]<int i>() {
        sum[r][i] = multiply_add(value[i], weight, sum[r][i]);
      });
    });
  }
  unroll<kRows>([&]<int r>() {
    unroll<kVectors>(
        [&]<int i>() { store(sum[r][i], rows[r].out + d + i * kLanes); });
  });
}

template <int kRows, class Values>
static void add_values(const Values& values,
                       int value_size,
                       const RowUpdate* rows,
                       int count) {
  constexpr int kWide = 4;
  int d = 0;
  for (; d + kWide * kLanes <= value_size; d += kWide * kLanes) {
    add_values_at<kRows, kWide>(values, rows, count, d);
  }
  for (; d + kLanes <= value_size; d += kLanes) {
    add_values_at<kRows, 1>(values, rows, count, d);
  }
  if (d == value_size) return;
  const int size = value_size - d;
  unroll<kRows>([&]<int r>() {
    Floats sum = load_rest(rows[r].out + d, size) * rows[r].rescale;
    for (int j = 0; j < count; ++j) {
      const Floats value = load_at(values[j], d, size);
      sum = multiply_add(value, splat(rows[r].weights[j]), sum);
    }
    store_rest(sum, rows[r].out + d, size);
  });
}

template <class Values>
static void add_values_of(const Values& values,
                          int value_size,
                          const RowUpdate* rows,
                          int num_rows,
                          int count) {
  constexpr int kTogether = kHas32Registers ? 4 : 2;
  int i = 0;
  for (; i + kTogether <= num_rows; i += kTogether) {
    add_values<kTogether>(values, value_size, rows + i, count);
  }
  const int left = num_rows - i;
  if (left == 3) return add_values<3>(values, value_size, rows + i, count);
  if (left == 2) return add_values<2>(values, value_size, rows + i, count);
  if (left == 1) return add_values<1>(values, value_size, rows + i, count);
}

// The scaled queries: few in rows, more in transposed tiles.
static void load_queries(const AttentionTask& t, const AttentionScratch& s) {
  const int num_rows = t.num_rows();
  auto query = [&](int row) {
    return t.q + row / t.num_queries * t.head_stride +
           row % t.num_queries * t.query_stride;
  };
  if (num_rows <= most_few_rows(t.k)) {
    for (int row = 0; row < num_rows; ++row) {
      const float* q = query(row);
      for_each_vector(t.head_size, [&](int d, int size) {
        store_some(load_some(q + d, size) * t.scale,
                   s.queries + row * t.head_size + d,
                   size);
      });
    }
    return;
  }
  constexpr int kAtOnce = kLanes < kQueryTile ? kLanes : kQueryTile;
  float* tile = s.queries;
  for (int row = 0; row < num_rows; row += kQueryTile) {
    const float* q[kQueryTile];
    for (int i = 0; i < kQueryTile; ++i) {
      q[i] = row + i < num_rows ? query(row + i) : nullptr;
    }
    for_each_vector(t.head_size, [&](int d, int size) {
      for (int i = 0; i < kQueryTile; i += kAtOnce) {
        Floats rows[kLanes] = {};
        for (int j = 0; j < kAtOnce; ++j) {
          if (q[i + j] != nullptr) {
            rows[j] = load_some(q[i + j] + d, size) * t.scale;
          }
        }
        transpose(rows);
        for (int k = 0; k < size; ++k) {
          std::memcpy(tile + (d + k) * kQueryTile + i,
                      &rows[k],
                      kAtOnce * sizeof(float));
        }
      }
    });
    tile += t.head_size * kQueryTile;
  }
}

// The end of the keys that rows [first, end) see.
static int last_key(const AttentionTask& t, int first, int end) {
  if (!t.causal) return t.end_key;
  // Where the rows are of several heads, the last query may be among them.
  const bool one_head = first / t.num_queries == (end - 1) / t.num_queries;
  const int query = one_head ? (end - 1) % t.num_queries : t.num_queries - 1;
  const int seen = t.causal_end + query;
  return seen < t.end_key ? seen : t.end_key;
}

// Makes weights of the scores of the block's first `count` keys for `num_rows`
// rows from `first_row` on, at most kQueryTile; of how many rows they change
// the results. Not inlined: the same code for few rows and many.
__attribute__((noinline)) static int weigh_block(
    const AttentionTask& t,
    int first_row,
    int num_rows,
    int first,
    int count,
    float* all_scores,
    RowUpdate (&updates)[kQueryTile]) {
  int num_updates = 0;
  for (int i = 0; i < num_rows; ++i) {
    const int row = first_row + i;
    float* scores = all_scores + i * kKeyBlock;
    const float before = t.largest[row];
    float largest = finish_scores(t, row, first, count, scores);
    largest = largest > before ? largest : before;
    if (largest == kNothing) continue;  // all masked so far
    const float rescale =
        before == kNothing ? 0.0f : __builtin_expf(before - largest);
    t.largest[row] = largest;
    t.sum[row] = t.sum[row] * rescale + exponentiate(scores, largest);
    updates[num_updates++] = {
        scores, rescale, t.out + static_cast<std::size_t>(row) * t.value_size};
  }
  return num_updates;
}

// The block's values as floats.
static PlainRows<float> opened_values(const AttentionTask& t,
                                      const AttentionScratch& s,
                                      int first,
                                      int count) {
  if (t.v.bits == 32) return {t.v, first};
  with_rows(t.v, first, [&](const auto& values) {
    for (int j = 0; j < count; ++j) {
      for_each_vector(t.value_size, [&](int d, int size) {
        store_some(
            load_at(values[j], d, size), s.values + j * t.value_size + d, size);
      });
    }
  });
  return {s.values, t.value_size};
}

static void few_rows_block(const AttentionTask& t,
                           const AttentionScratch& s,
                           int first,
                           int count) {
  const int num_rows = t.num_rows();
  with_common_rows(t.k, first, [&](const auto& keys) {
    using Keys = std::decay_t<decltype(keys)>;
    constexpr bool kUsual = std::is_same_v<Keys, PlainRows<std::uint16_t>>;
    const FewRows<Keys> rows{keys,
                             count - 1,
                             t.head_size,
                             s.queries,
                             {t.k, first, t.head_size},
                             {t.v, first, t.value_size}};
    few_scores_of<1, kUsual ? kQueryTile : 4>(rows, num_rows, s.scores);
  });
  RowUpdate updates[kQueryTile];
  const int num_updates =
      weigh_block(t, 0, num_rows, first, count, s.scores, updates);
  auto add = [&](const auto& values) {
    add_values_of(values, t.value_size, updates, num_updates, count);
  };
  if (!with_common_rows(t.v, first, add))
    add(opened_values(t, s, first, count));
}

static void many_rows_block(const AttentionTask& t,
                            const AttentionScratch& s,
                            int first,
                            int all) {
  with_rows(t.k, first, [&](const auto& keys) {
    transpose_keys(keys, all, t.head_size, s.keys);
  });
  const PlainRows<float> values = opened_values(t, s, first, all);
  const int num_rows = t.num_rows();
  for (int row = 0; row < num_rows; row += kQueryTile) {
    const int rows = num_rows - row < kQueryTile ? num_rows - row : kQueryTile;
    const int left = last_key(t, row, row + rows) - first;
    const int count = left < all ? left : all;
    if (count <= 0) continue;
    tile_scores(s.queries + static_cast<std::size_t>(row) * t.head_size,
                s.keys,
                t.head_size,
                count,
                s.scores);
    RowUpdate updates[kQueryTile];
    const int num_updates =
        weigh_block(t, row, rows, first, count, s.scores, updates);
    add_values_of(values, t.value_size, updates, num_updates, count);
  }
}

static void attention(const AttentionTask& t, float* scratch) {
  const int num_rows = t.num_rows();
  const AttentionScratch s = split_scratch(t, scratch);
  load_queries(t, s);
  for (int row = 0; row < num_rows; ++row) {
    t.largest[row] = kNothing;
    t.sum[row] = 0.0f;
  }
  const std::size_t floats = static_cast<std::size_t>(num_rows) * t.value_size;
  for (std::size_t i = 0; i < floats; ++i) {
    t.out[i] = 0.0f;
  }
  const int end = last_key(t, 0, num_rows);
  for (int first = t.first_key; first < end; first += kKeyBlock) {
    const int count = end - first < kKeyBlock ? end - first : kKeyBlock;
    if (num_rows <= most_few_rows(t.k)) {
      few_rows_block(t, s, first, count);
    } else {
      many_rows_block(t, s, first, count);
    }
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
