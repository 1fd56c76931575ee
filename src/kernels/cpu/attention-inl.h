// Attention in one pass over the keys (online softmax: Milakov and Gimelshein
// 2018; tiles: Dao et al. 2022), so no matrix of all scores exists.
#pragma once

#include <cstddef>
#include <type_traits>

#include "kernels/cpu/attention_scores-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

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

// The values of a block's keys.
template <class Values>
struct BlockValues {
  Values rows;
  int count;
  int size;  // of a row
  // The rows of which the next block's are asked for on the way, or null.
  const RowBytes* ahead;

  BlockValues(const Values& rows,
              int count,
              int size,
              const RowBytes* ahead = nullptr)
      : rows(rows), count(count), size(size), ahead(ahead) {}
};

// kVectors vectors of the results of kRows rows, from dimension d on: out *
// rescale + the sum over j, in order, of weights[j] * values[j]. Each value is
// read once for all rows.
template <int kRows, int kVectors, class Values>
static inline __attribute__((always_inline)) void add_values_at(
    const BlockValues<Values>& values, const RowUpdate* rows, int d) {
  Floats sum[kRows][kVectors];
  unroll<kRows>([&]<int r>() {
    unroll<kVectors>([&]<int i>() {
      sum[r][i] = load(rows[r].out + d + i * kLanes) * rows[r].rescale;
    });
  });
  for (int j = 0; j < values.count; ++j) {
    const auto row = values.rows[j];
    if (values.ahead != nullptr) values.ahead->ask_for(j + kKeyBlock);
    Floats value[kVectors];
    unroll<kVectors>([&]<int i>() __attribute__((always_inline)) {
      value[i] = load_at(row, d + i * kLanes, kLanes);
    });
    unroll<kRows>([&]<int r>() {
      const Floats weight = in_register(splat(rows[r].weights[j]));
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
static void add_values(BlockValues<Values> values, const RowUpdate* rows) {
  constexpr int kWide = 4;
  int d = 0;
  for (; d + kWide * kLanes <= values.size; d += kWide * kLanes) {
    add_values_at<kRows, kWide>(values, rows, d);
    values.ahead = nullptr;
  }
  for (; d + kLanes <= values.size; d += kLanes) {
    add_values_at<kRows, 1>(values, rows, d);
    values.ahead = nullptr;
  }
  if (d == values.size) return;
  const int size = values.size - d;
  unroll<kRows>([&]<int r>() {
    Floats sum = load_rest(rows[r].out + d, size) * rows[r].rescale;
    for (int j = 0; j < values.count; ++j) {
      const Floats value = load_at(values.rows[j], d, size);
      sum = multiply_add(value, splat(rows[r].weights[j]), sum);
    }
    store_rest(sum, rows[r].out + d, size);
  });
}

template <class Values>
static void add_values_of(BlockValues<Values> values,
                          const RowUpdate* rows,
                          int num_rows) {
  constexpr int kTogether = kHas32Registers ? 4 : 2;
  int i = 0;
  for (; i + kTogether <= num_rows; i += kTogether) {
    add_values<kTogether>(values, rows + i);
    values.ahead = nullptr;
  }
  const int left = num_rows - i;
  if (left == 3) return add_values<3>(values, rows + i);
  if (left == 2) return add_values<2>(values, rows + i);
  if (left == 1) return add_values<1>(values, rows + i);
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
  float* tile = s.queries;
  for (int first = 0; first < num_rows; first += kQueryTile) {
    const int left = num_rows - first;
    const int count = left < kQueryTile ? left : kQueryTile;
    const float* q[kQueryTile];
    for (int i = 0; i < count; ++i) q[i] = query(first + i);
    interleave_rows(
        count, kQueryTile, t.head_size, tile, [&](int i, int d, int size) {
          return load_some(q[i] + d, size) * t.scale;
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

// The scores of few rows; the usual form and sizes of heads have code of their
// own.
static void score_few_rows(const AttentionTask& t,
                           const AttentionScratch& s,
                           int first,
                           int count) {
  const int num_rows = t.num_rows();
  with_common_rows(t.k, first, [&](const auto& keys) {
    using Keys = std::decay_t<decltype(keys)>;
    constexpr int kFew = 4;
    auto rows = [&]<int kHeadSize>() {
      return FewRows<Keys, kHeadSize>{keys,
                                      count - 1,
                                      t.head_size,
                                      s.queries,
                                      {t.k, first, t.head_size},
                                      {t.v, first, t.value_size},
                                      first == t.first_key};
    };
    if constexpr (std::is_same_v<Keys, PlainRows<std::uint16_t>>) {
      if (num_rows <= kFew && t.head_size == 64) {
        return few_scores_of<1, kFew>(
            rows.template operator()<64>(), num_rows, s.scores);
      }
      if (num_rows <= kFew && t.head_size == 128) {
        return few_scores_of<1, kFew>(
            rows.template operator()<128>(), num_rows, s.scores);
      }
      few_scores_of<1, kQueryTile>(
          rows.template operator()<0>(), num_rows, s.scores);
    } else {
      few_scores_of<1, kFew>(rows.template operator()<0>(), num_rows, s.scores);
    }
  });
}

static void few_rows_block(const AttentionTask& t,
                           const AttentionScratch& s,
                           int first,
                           int count) {
  score_few_rows(t, s, first, count);
  RowUpdate updates[kQueryTile];
  const int num_updates =
      weigh_block(t, 0, t.num_rows(), first, count, s.scores, updates);
  const RowBytes bytes(t.v, first, t.value_size);
  auto add = [&](const auto& values) {
    add_values_of(
        BlockValues(values, count, t.value_size, &bytes), updates, num_updates);
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
    add_values_of(
        BlockValues(values, count, t.value_size), updates, num_updates);
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
