// Attention of one new token per row: each block reads a share of the keys and
// values of one key head once, for all query heads that share it. A second,
// small kernel combines the shares.
#pragma once

#include "common.cuh"

namespace mlxlm {

constexpr int kAttentionThreads = 128;
constexpr int kTileKeys = 64;

// A sequence's buffers: [Hkv, capacity, D].
template <class T>
struct AttendedRow {
  T* keys;
  T* values;
  int at;        // of the new token
  int num_keys;  // that it sees
  int capacity_tokens;
};

// The new tokens of some sequences.
template <class T>
struct DecodeAttention {
  const T* q;  // [H, rows, D]
  const T* k;  // [Hkv, rows, D]: the new keys
  const T* v;
  int num_rows;
  int num_heads;
  int num_kv_heads;
  float scale;
  float softcap;  // 0: off
};

constexpr float kLog2e = 1.4426950408889634f;
#define MLXLM_MINUS_INFINITY __int_as_float(0xff800000)

// Puts the new token's key and value of a head where they belong.
template <class T, int D>
__device__ void append_head(const DecodeAttention<T>& a,
                            const AttendedRow<T>& own,
                            int row,
                            int kv_head) {
  constexpr int kPart = 16 / sizeof(T);
  const size_t from = (static_cast<size_t>(kv_head) * a.num_rows + row) * D;
  const size_t to =
      (static_cast<size_t>(kv_head) * own.capacity_tokens + own.at) * D;
  const int i = threadIdx.x % (D / kPart);
  if (threadIdx.x < D / kPart) {
    reinterpret_cast<uint4*>(own.keys + to)[i] =
        reinterpret_cast<const uint4*>(a.k + from)[i];
  } else if (threadIdx.x < 2 * D / kPart) {
    reinterpret_cast<uint4*>(own.values + to)[i] =
        reinterpret_cast<const uint4*>(a.v + from)[i];
  }
}

// Appends the new tokens and attends. QUERIES: query heads of a block, a
// divisor of H / Hkv. Grid: shares, key heads times (H / Hkv / QUERIES), rows.
// sums [rows, H, shares, D] float32, weights [rows, H, shares, 2]: largest
// score, base 2, and sum of exponentials.
template <class T, int D, int QUERIES>
__device__ void decode_attention(const DecodeAttention<T>& a,
                                 const AttendedRow<T>& own,
                                 float* sums,
                                 float* weights) {
  constexpr int kLanes = 8;          // per key
  constexpr int kDims = D / kLanes;  // of a lane
  constexpr int kKeysPerStep = kAttentionThreads / kLanes;
  constexpr int kSteps = kTileKeys / kKeysPerStep;
  constexpr int kSubsets = kAttentionThreads / (D / 2);  // of keys, for values
  constexpr int kSubsetKeys = kTileKeys / kSubsets;
  __shared__ float scores[kTileKeys][QUERIES];
  __shared__ float factors[QUERIES];
  __shared__ float totals[QUERIES];
  __shared__ float highest[QUERIES];
  __shared__ float joined[kSubsets > 1 ? kSubsets - 1 : 1][QUERIES][D];

  const int share = blockIdx.x;
  const int num_shares = gridDim.x;
  const int parts = a.num_heads / a.num_kv_heads / QUERIES;
  const int kv_head = blockIdx.y / parts;
  const int head = blockIdx.y * QUERIES;
  const int row = blockIdx.z;
  const int tiles = (own.num_keys + kTileKeys - 1) / kTileKeys;
  const int first_tile = tiles * share / num_shares;
  const int last_tile = tiles * (share + 1) / num_shares;
  // Blocks of the same key head write the same, and read it themselves.
  if (own.at >= first_tile * kTileKeys && own.at < last_tile * kTileKeys) {
    append_head<T, D>(a, own, row, kv_head);
  }

  const size_t first_key = static_cast<size_t>(kv_head) * own.capacity_tokens;
  const T* k = own.keys + first_key * D;
  const T* v = own.values + first_key * D;
  const int lane = threadIdx.x % kLanes;
  const int key_of_step = threadIdx.x / kLanes;
  const int dims = threadIdx.x % (D / 2) * 2;
  const int subset = threadIdx.x / (D / 2);

  float q[QUERIES][kDims];
#pragma unroll
  for (int i = 0; i < QUERIES; ++i) {
    const T* from =
        a.q + (static_cast<size_t>(head + i) * a.num_rows + row) * D;
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      // Lanes take 8 dimensions in turn, so that their loads are next to each
      // other.
      const int d = j / 8 * 8 * kLanes + lane * 8 + j % 8;
      q[i][j] = to_float(from[d]) * a.scale;
    }
  }
  if (threadIdx.x < QUERIES) {
    highest[threadIdx.x] = MLXLM_MINUS_INFINITY;
    totals[threadIdx.x] = 0;
  }
  float sum[QUERIES][2] = {};
  __syncthreads();

  for (int tile = first_tile; tile < last_tile; ++tile) {
    const int begin = tile * kTileKeys;
    uint4 keys[kSteps][kDims / 8];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int key =
          min(begin + s * kKeysPerStep + key_of_step, own.num_keys - 1);
#pragma unroll
      for (int j = 0; j < kDims / 8; ++j) {
        keys[s][j] = *reinterpret_cast<const uint4*>(
            k + static_cast<size_t>(key) * D + j * 8 * kLanes + lane * 8);
      }
    }
    u32 values[kSubsetKeys];
#pragma unroll
    for (int i = 0; i < kSubsetKeys; ++i) {
      const int key = min(begin + subset * kSubsetKeys + i, own.num_keys - 1);
      values[i] = *reinterpret_cast<const u32*>(
          v + static_cast<size_t>(key) * D + dims);
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      float dot[QUERIES] = {};
#pragma unroll
      for (int j = 0; j < kDims / 8; ++j) {
        const u32 raw[4] = {
            keys[s][j].x, keys[s][j].y, keys[s][j].z, keys[s][j].w};
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          const float2 x = Pair<T>::floats(raw[p]);
#pragma unroll
          for (int i = 0; i < QUERIES; ++i) {
            dot[i] += x.x * q[i][j * 8 + p * 2] + x.y * q[i][j * 8 + p * 2 + 1];
          }
        }
      }
      const int key = s * kKeysPerStep + key_of_step;
#pragma unroll
      for (int i = 0; i < QUERIES; ++i) {
        float score = lane_sum<kLanes>(dot[i]);
        if (lane == i % kLanes) {
          if (a.softcap > 0) score = a.softcap * tanhf(score / a.softcap);
          scores[key][i] = begin + key < own.num_keys ? score * kLog2e
                                                      : MLXLM_MINUS_INFINITY;
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x / 32; i < QUERIES; i += kAttentionThreads / 32) {
      const int at = threadIdx.x % 32;
      const float s0 = scores[at][i];
      const float s1 = scores[at + 32][i];
      const float before = highest[i];
      const float now = fmaxf(before, lane_max<32>(fmaxf(s0, s1)));
      const float p0 = exp2f(s0 - now);
      const float p1 = exp2f(s1 - now);
      scores[at][i] = p0;
      scores[at + 32][i] = p1;
      const float total = lane_sum<32>(p0 + p1);
      __syncwarp();
      if (at == 0) {
        const float factor = exp2f(before - now);
        factors[i] = factor;
        totals[i] = totals[i] * factor + total;
        highest[i] = now;
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < QUERIES; ++i) {
      sum[i][0] *= factors[i];
      sum[i][1] *= factors[i];
    }
#pragma unroll
    for (int n = 0; n < kSubsetKeys; ++n) {
      const float2 x = Pair<T>::floats(values[n]);
#pragma unroll
      for (int i = 0; i < QUERIES; ++i) {
        const float p = scores[subset * kSubsetKeys + n][i];
        sum[i][0] += p * x.x;
        sum[i][1] += p * x.y;
      }
    }
    __syncthreads();
  }

  if (subset > 0) {
#pragma unroll
    for (int i = 0; i < QUERIES; ++i) {
      joined[subset - 1][i][dims] = sum[i][0];
      joined[subset - 1][i][dims + 1] = sum[i][1];
    }
  }
  __syncthreads();
  const size_t first_head = static_cast<size_t>(row) * a.num_heads + head;
  if (subset > 0) return;
#pragma unroll
  for (int i = 0; i < QUERIES; ++i) {
#pragma unroll
    for (int s = 0; s + 1 < kSubsets; ++s) {
      sum[i][0] += joined[s][i][dims];
      sum[i][1] += joined[s][i][dims + 1];
    }
    const size_t at = (first_head + i) * num_shares + share;
    *reinterpret_cast<float2*>(sums + at * D + dims) =
        make_float2(sum[i][0], sum[i][1]);
    if (threadIdx.x == 0) {
      weights[at * 2] = highest[i];
      weights[at * 2 + 1] = totals[i];
    }
  }
}

// Grid: H, rows; blocks of D threads. sinks [H], base e, or null; out [rows, H,
// D].
template <class T, int D>
__device__ void combine_shares(const float* sums,
                               const float* weights,
                               int num_shares,
                               const float* sinks,
                               T* out) {
  const int num_heads = gridDim.x;
  const size_t first =
      (static_cast<size_t>(blockIdx.y) * num_heads + blockIdx.x) * num_shares;
  const float sink =
      sinks != nullptr ? sinks[blockIdx.x] * kLog2e : MLXLM_MINUS_INFINITY;
  float highest = sink;
  for (int s = 0; s < num_shares; ++s) {
    highest = fmaxf(highest, weights[(first + s) * 2]);
  }
  float total = exp2f(sink - highest);
  float sum = 0;
#pragma unroll 4
  for (int s = 0; s < num_shares; ++s) {
    const float factor = exp2f(weights[(first + s) * 2] - highest);
    total += factor * weights[(first + s) * 2 + 1];
    sum += factor * sums[(first + s) * D + threadIdx.x];
  }
  out[(static_cast<size_t>(blockIdx.y) * num_heads + blockIdx.x) * D +
      threadIdx.x] = from_float<T>(sum / total);
}

}  // namespace mlxlm
