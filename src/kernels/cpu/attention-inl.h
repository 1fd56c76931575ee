// Attention in one pass over the keys (online softmax: Milakov and Gimelshein
// 2018; tiles: Dao et al. 2022), so no matrix of all scores exists.
#pragma once

#include "kernels/cpu/elementwise-inl.h"
#include "kernels/cpu/matmul-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

// Keys per block and queries per tile: the block's scores and the transposed
// keys stay in the first-level cache.
inline constexpr int kKeyBlock = 64;
inline constexpr int kQueryTile = kLanes == 16 ? 8 : 4;
inline constexpr float kNothing = -__builtin_inff();

struct AttentionScratch {
  float* queries;  // [head_size, kQueryTile], scaled
  float* keys;     // [kKeyBlock / kLanes][head_size][kLanes]
  float* scores;   // [kQueryTile, kKeyBlock]
  float* rows;     // [kQueryTile, head_size], scaled
};

static std::size_t attention_scratch_floats(int head_size, int) {
  return static_cast<std::size_t>(head_size) * (2 * kQueryTile + kKeyBlock) +
         kQueryTile * kKeyBlock + 64;
}

static AttentionScratch split_scratch(float* scratch, int head_size) {
  AttentionScratch s;
  s.queries = scratch;
  s.keys = s.queries + head_size * kQueryTile;
  s.scores = s.keys + head_size * kKeyBlock;
  s.rows = s.scores + kQueryTile * kKeyBlock;
  return s;
}

static inline float dot(const float* a, const float* b, int size) {
  Floats sum = {};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    sum += load(a + i) * load(b + i);
  }
  float total = sum_of(sum);
  for (; i < size; ++i) {
    total += a[i] * b[i];
  }
  return total;
}

// Keys [first, first + count) transposed, zeros behind them.
static void transpose_keys(const AttentionTask& t,
                           int first,
                           int count,
                           float* keys) {
  for (int j = 0; j < kKeyBlock; ++j) {
    float* out = keys + (j / kLanes) * t.head_size * kLanes + j % kLanes;
    if (j < count) {
      const float* key = t.k + (first + j) * t.key_stride;
      for (int d = 0; d < t.head_size; ++d) {
        out[d * kLanes] = key[d];
      }
    } else {
      for (int d = 0; d < t.head_size; ++d) {
        out[d * kLanes] = 0.0f;
      }
    }
  }
}

// scores[i, j] of kQueryTile queries with a block of transposed keys.
static void tile_scores(const AttentionScratch& s, int head_size, int count) {
  for (int j = 0; j < count; j += kLanes) {
    const float* keys = s.keys + (j / kLanes) * head_size * kLanes;
    Floats sum[kQueryTile] = {};
    for (int d = 0; d < head_size; ++d) {
      Floats key = load(keys + d * kLanes);
      const float* q = s.queries + d * kQueryTile;
      unroll<kQueryTile>([&]<int i>() { sum[i] += key * q[i]; });
    }
    unroll<kQueryTile>(
        [&]<int i>() { store(sum[i], s.scores + i * kKeyBlock + j); });
  }
}

// Softcap and masks of one query's block of scores; the largest that is left.
static float finish_scores(
    const AttentionTask& t, int query, int first, int count, float* scores) {
  if (t.softcap > 0.0f) {
    for (int j = 0; j < count; j += kLanes) {
      store(tanh_of(load(scores + j) / t.softcap) * t.softcap, scores + j);
    }
  }
  const std::ptrdiff_t row = query * t.mask_query_stride;
  if (t.mask_bool != nullptr) {
    for (int j = 0; j < count; ++j) {
      if (!t.mask_bool[row + (first + j) * t.mask_key_stride]) {
        scores[j] = kNothing;
      }
    }
  } else if (t.mask_add != nullptr) {
    for (int j = 0; j < count; ++j) {
      scores[j] += t.mask_add[row + (first + j) * t.mask_key_stride];
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

// out[0..size) = out * rescale + sum over j of weights[j] * values[j].
static void add_values(const AttentionTask& t,
                       const float* weights,
                       int first,
                       int count,
                       float rescale,
                       float* out) {
  constexpr int kWide = 4;
  int d = 0;
  const float* values = t.v + first * t.value_stride;
  for (; d + kWide * kLanes <= t.value_size; d += kWide * kLanes) {
    Floats sum[kWide];
    unroll<kWide>(
        [&]<int i>() { sum[i] = load(out + d + i * kLanes) * rescale; });
    for (int j = 0; j < count; ++j) {
      const float* v = values + j * t.value_stride + d;
      unroll<kWide>(
          [&]<int i>() { sum[i] += load(v + i * kLanes) * weights[j]; });
    }
    unroll<kWide>([&]<int i>() { store(sum[i], out + d + i * kLanes); });
  }
  for_each_vector(t.value_size - d, [&](int i, int size) {
    Floats sum = load_some(out + d + i, size) * rescale;
    for (int j = 0; j < count; ++j) {
      sum += load_some(values + j * t.value_stride + d + i, size) * weights[j];
    }
    store_some(sum, out + d + i, size);
  });
}

// The tile's scaled queries, row by row and transposed.
static void load_queries(const AttentionTask& t,
                         int first,
                         int count,
                         const AttentionScratch& s) {
  for (int i = 0; i < kQueryTile; ++i) {
    for (int d = 0; d < t.head_size; ++d) {
      float value =
          i < count ? t.q[(first + i) * t.query_stride + d] * t.scale : 0.0f;
      s.queries[d * kQueryTile + i] = value;
      s.rows[i * t.head_size + d] = value;
    }
  }
}

static void attention(const AttentionTask& t, float* scratch) {
  const AttentionScratch s = split_scratch(scratch, t.head_size);
  for (int first_query = 0; first_query < t.num_queries;
       first_query += kQueryTile) {
    int queries = t.num_queries - first_query;
    queries = queries < kQueryTile ? queries : kQueryTile;
    load_queries(t, first_query, queries, s);
    for (int i = 0; i < queries; ++i) {
      t.largest[first_query + i] = kNothing;
      t.sum[first_query + i] = 0.0f;
      float* out = t.out + (first_query + i) * t.value_size;
      for (int d = 0; d < t.value_size; ++d) {
        out[d] = 0.0f;
      }
    }
    int end = t.end_key;
    if (t.causal && t.causal_end + first_query + queries - 1 < end) {
      end = t.causal_end + first_query + queries - 1;
    }
    for (int first = t.first_key; first < end; first += kKeyBlock) {
      const int count = end - first < kKeyBlock ? end - first : kKeyBlock;
      // A transposed block pays for itself from a few queries on.
      if (queries > 2) {
        transpose_keys(t, first, count, s.keys);
        tile_scores(s, t.head_size, count);
      } else {
        for (int i = 0; i < queries; ++i) {
          for (int j = 0; j < count; ++j) {
            s.scores[i * kKeyBlock + j] = dot(s.rows + i * t.head_size,
                                              t.k + (first + j) * t.key_stride,
                                              t.head_size);
          }
        }
      }
      for (int i = 0; i < queries; ++i) {
        const int query = first_query + i;
        float* scores = s.scores + i * kKeyBlock;
        const float before = t.largest[query];
        float largest = finish_scores(t, query, first, count, scores);
        largest = largest > before ? largest : before;
        if (largest == kNothing) {
          continue;  // all masked so far
        }
        const float rescale =
            before == kNothing ? 0.0f : __builtin_expf(before - largest);
        t.largest[query] = largest;
        t.sum[query] = t.sum[query] * rescale + exponentiate(scores, largest);
        add_values(
            t, scores, first, count, rescale, t.out + query * t.value_size);
      }
    }
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
