// Attention of a step kernel: one new token per row. A block takes a share of
// the keys of one key head for all query heads that share it, with tensor
// cores. The product that follows joins the shares.
#pragma once

#include "step_linear.cuh"

namespace mlxlm {

// Keys and values of one layer and row: [Hkv, capacity, D].
template <class T>
struct StepKeys {
  T* keys;
  T* values;
  long long capacity_tokens;
};

// QUERIES: query heads of a key head, at most 8. A share is done by a team of
// kStepThreads threads, of which a block may have several.
template <class T, int D, int ROTATED, bool TRADITIONAL, int QUERIES>
struct StepAttention {
  static_assert(QUERIES <= 8);
  static constexpr int kTileKeys = 16;  // of a warp

  struct Shared {
    alignas(16) T q[QUERIES][D + 8];
    float scratch[kStepWarps][D];  // a head before its rope
    // The warps' parts.
    float highest[kStepWarps][QUERIES];
    float total[kStepWarps][QUERIES];
  };

  // Of one position.
  struct Angles {
    float cosines[ROTATED / 2];
    float sines[ROTATED / 2];
  };

  struct Problem {
    const float* heads;  // of the row: q [H, D], k [Hkv, D], v [Hkv, D]
    StepKeys<T> cache;
    const Angles& angles;
    int num_heads;
    int num_kv_heads;
    int position;  // of the new token
  };

  // Of the team.
  static __device__ int thread() { return threadIdx.x % kStepThreads; }
  static __device__ void sync() {
    const int team = static_cast<int>(threadIdx.x) / kStepThreads;
    asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(kStepThreads)
                 : "memory");
  }

  static __device__ void take_angles(const float* frequencies,
                                     int position,
                                     Angles& angles) {
    for (int i = thread(); i < ROTATED / 2; i += kStepThreads) {
      sincosf(position * frequencies[i], &angles.sines[i], &angles.cosines[i]);
    }
  }

  // A head before its norm and rope, in the lanes of a warp.
  struct Head {
    float values[D / 32];
    float norm[D / 32];

    __device__ void read(const float* from, const T* weights) {
#pragma unroll
      for (int i = 0; i < D / 32; ++i) {
        const int d = i * 32 + threadIdx.x % 32;
        values[i] = __ldcg(from + d);
        norm[i] = weights != nullptr ? to_float(weights[d]) : 1.0f;
      }
    }
  };

  // Norm and rope of one head by one warp; use(d, value) gets the results.
  template <class Use>
  static __device__ void prepare(const Head& head,
                                 bool has_norm,
                                 float eps,
                                 const Angles& angles,
                                 Shared& shared,
                                 const Use& use) {
    const int lane = threadIdx.x % 32;
    float* scratch = shared.scratch[thread() / 32];
    float square = 0;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) square += head.values[i] * head.values[i];
    float factor = 1;
    if (has_norm) factor = rsqrtf(lane_sum<32>(square) / D + eps);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      scratch[i * 32 + lane] = head.values[i] * (factor * head.norm[i]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      const int d = i * 32 + lane;
      if (d >= ROTATED) {
        use(d, scratch[d]);
        continue;
      }
      const int half = ROTATED / 2;
      const int pair = TRADITIONAL ? d / 2 : d % half;
      const int a = TRADITIONAL ? pair * 2 : pair;
      const int b = TRADITIONAL ? pair * 2 + 1 : pair + half;
      const float c = angles.cosines[pair];
      const float s = angles.sines[pair];
      use(d,
          d == a ? scratch[a] * c - scratch[b] * s
                 : scratch[a] * s + scratch[b] * c);
    }
    __syncwarp();
  }

  // Queries into shared memory and, in the share that has it, the new token's
  // key and value into the cache.
  static __device__ void prepare_heads(const StepOperation<T>& op,
                                       const Problem& p,
                                       int kv_head,
                                       bool has_new,
                                       Shared& shared) {
    constexpr int group = QUERIES;
    constexpr int kRounds = (group + 2 + kStepWarps - 1) / kStepWarps;
    const int items = group + (has_new ? 2 : 0);
    const int warp = thread() / 32;
    const size_t at =
        (static_cast<size_t>(kv_head) * p.cache.capacity_tokens + p.position) *
        D;
    // Reads wait together.
    Head heads[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int item = warp + r * kStepWarps;
      if (item >= items) continue;
      const int place = item < group ? kv_head * group + item
                        : item == group
                            ? p.num_heads + kv_head
                            : p.num_heads + p.num_kv_heads + kv_head;
      heads[r].read(p.heads + place * D,
                    item < group    ? op.q_norm
                    : item == group ? op.k_norm
                                    : nullptr);
    }
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int item = warp + r * kStepWarps;
      if (item >= items) continue;
      if (item < group) {
        prepare(heads[r],
                op.q_norm != nullptr,
                op.eps,
                p.angles,
                shared,
                [&](int d, float value) {
                  shared.q[item][d] = from_float<T>(value);
                });
      } else if (item == group) {
        prepare(heads[r],
                op.k_norm != nullptr,
                op.eps,
                p.angles,
                shared,
                [&](int d, float value) {
                  p.cache.keys[at + d] = from_float<T>(value);
                });
      } else {
#pragma unroll
        for (int i = 0; i < D / 32; ++i) {
          p.cache.values[at + i * 32 + threadIdx.x % 32] =
              from_float<T>(heads[r].values[i]);
        }
      }
    }
    sync();
  }

  // One warp's queries against keys; scores of a tile are in the layout in
  // which tensor cores take them as the first factor of the values' product.
  struct Warp {
    u32 q[D / 32][4];
    float sums[D / 16][4];   // [dimensions][query 2 part, 2 part + 1], twice
    float highest = -1e30f;  // of query lane / 4
    float total = 0;

    __device__ void take_queries(const Shared& shared, int group) {
      const int row = threadIdx.x % 32 / 4;
#pragma unroll
      for (int b = 0; b < D / 32; ++b) {
        uint4 v = {0, 0, 0, 0};
        if (row < group) {
          v = *reinterpret_cast<const uint4*>(
              &shared.q[row][b * 32 + threadIdx.x % 4 * 8]);
        }
        q[b][0] = v.x, q[b][1] = v.y, q[b][2] = v.z, q[b][3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = 0;
      }
    }

    static __device__ void load(const T* from, u32 (&to)[4]) {
      const uint4 v = __ldcg(reinterpret_cast<const uint4*>(from));
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }

    // Keys [begin, begin + 16), of which those in [first, last) count.
    __device__ void tile(const T* keys,
                         const T* values,
                         int begin,
                         int first,
                         int last,
                         float scale,
                         float softcap) {
      const int row = threadIdx.x % 32 / 4;
      const int part = threadIdx.x % 4;
      float scores[2][4] = {};
      // All loads wait together.
      u32 k[2][D / 32][4];
      u32 v[D / 64][4][4];  // keys 2 part, 2 part + 1, and 8 on
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const T* key =
            keys + static_cast<size_t>(min(begin + n * 8 + row, last - 1)) * D;
#pragma unroll
        for (int b = 0; b < D / 32; ++b) load(key + b * 32 + part * 8, k[n][b]);
      }
#pragma unroll
      for (int j = 0; j < D / 64; ++j) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int key = begin + 2 * part + n % 2 + n / 2 * 8;
          load(values + static_cast<size_t>(min(key, last - 1)) * D + j * 64 +
                   row * 8,
               v[j][n]);
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int b = 0; b < D / 32; ++b) {
          const u32 first_half[4] = {q[b][0], 0, q[b][1], 0};
          const u32 second_half[4] = {q[b][2], 0, q[b][3], 0};
          Pair<T>::mma(scores[n], first_half, k[n][b][0], k[n][b][1]);
          Pair<T>::mma(scores[n], second_half, k[n][b][2], k[n][b][3]);
        }
      }
      float now = highest;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = begin + n * 8 + part * 2 + i;
          float score = scores[n][i] * scale;
          if (softcap > 0) score = softcap * tanhf(score / softcap);
          scores[n][i] =
              key >= first && key < last ? score * kStepLog2e : -2e30f;
          now = fmaxf(now, scores[n][i]);
        }
      }
      now = lane_max<4>(now);
      const float factor = exp2f(highest - now);
      highest = now;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          scores[n][i] = exp2f(scores[n][i] - now);
          sum += scores[n][i];
        }
      }
      total = total * factor + lane_sum<4>(sum);
      // Scores lie in the lanes as the second factor has them.
      const u32 p0 = Pair<T>::of(scores[0][0], scores[0][1]);
      const u32 p1 = Pair<T>::of(scores[1][0], scores[1][1]);
      const float even = __shfl_sync(0xffffffffu, factor, part * 8);
      const float odd = __shfl_sync(0xffffffffu, factor, part * 8 + 4);
#pragma unroll
      for (int j = 0; j < D / 64; ++j) {
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          float(&to)[4] = sums[j * 4 + u];
          to[0] *= even, to[1] *= odd, to[2] *= even, to[3] *= odd;
          const u32 a[4] = {__byte_perm(v[j][0][u], v[j][1][u], 0x5410),
                            __byte_perm(v[j][0][u], v[j][1][u], 0x7632),
                            __byte_perm(v[j][2][u], v[j][3][u], 0x5410),
                            __byte_perm(v[j][2][u], v[j][3][u], 0x7632)};
          Pair<T>::mma(to, a, p0, p1);
        }
      }
    }

    // Puts this warp's part where the others find it: parts [query][D].
    __device__ void leave(Shared& shared, float* parts, int group) const {
      const int warp = thread() / 32;
      const int row = threadIdx.x % 32 / 4;
      const int part = threadIdx.x % 4;
      if (part == 0 && row < group) {
        shared.highest[warp][row] = highest;
        shared.total[warp][row] = total;
      }
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        const int d = i / 4 * 64 + row * 8 + i % 4 * 2;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int query = part * 2 + j;
          if (query >= group) continue;
          float* to = parts + (warp * group + query) * D + d;
          *reinterpret_cast<float2*>(to) =
              make_float2(sums[i][j], sums[i][j + 2]);
        }
      }
    }
  };

  // The tiles of keys of a share.
  struct Range {
    int first_key, last_key;  // that count
    int begin, end;           // tiles

    __device__ Range(int position, int window, int index, int num_shares) {
      last_key = position + 1;
      first_key = window > 0 ? max(last_key - window, 0) : 0;
      const int first = first_key / kTileKeys;
      const int tiles = (last_key + kTileKeys - 1) / kTileKeys - first;
      begin = first + tiles * index / num_shares;
      end = first + tiles * (index + 1) / num_shares;
    }
  };

  // By the loading warps, while the others are still at something else.
  static __device__ void prefetch(const StepOperation<T>& op,
                                  const StepKeys<T>& cache,
                                  int position,
                                  int kv_head,
                                  int index,
                                  int num_shares,
                                  int thread) {
    constexpr int kLine = 64;  // values
    const Range range(position, op.window, index, num_shares);
    if (thread * kLine < D) {
      if (op.q_norm != nullptr) mlxlm::prefetch(op.q_norm + thread * kLine);
      if (op.k_norm != nullptr) mlxlm::prefetch(op.k_norm + thread * kLine);
    }
    const size_t head = static_cast<size_t>(kv_head) * cache.capacity_tokens;
    const size_t first = (head + range.begin * kTileKeys) * D;
    const size_t last = (head + min(range.end * kTileKeys, range.last_key)) * D;
    for (size_t at = first + thread * kLine; at < last;
         at += kLoadThreads * kLine) {
      mlxlm::prefetch(cache.keys + at);
      mlxlm::prefetch(cache.values + at);
    }
  }

  // One share of one key head. `parts`: room for kStepWarps * group * D floats.
  // store(head, d, answer, weight) gets the results; a weight is a power of
  // two.
  template <class Store>
  static __device__ void share(const StepOperation<T>& op,
                               const Problem& p,
                               int kv_head,
                               int index,
                               int num_shares,
                               Shared& shared,
                               float* parts,
                               const Store& store) {
    constexpr int group = QUERIES;
    const Range range(p.position, op.window, index, num_shares);
    prepare_heads(op, p, kv_head, index == num_shares - 1, shared);
    Warp warp;
    warp.take_queries(shared, group);
    const size_t head_at =
        static_cast<size_t>(kv_head) * p.cache.capacity_tokens * D;
    for (int t = range.begin + thread() / 32; t < range.end; t += kStepWarps) {
      warp.tile(p.cache.keys + head_at,
                p.cache.values + head_at,
                t * kTileKeys,
                range.first_key,
                range.last_key,
                op.scale,
                op.softcap);
    }
    warp.leave(shared, parts, group);
    sync();
    for (int i = thread(); i < group * D; i += kStepThreads) {
      const int query = i / D;
      const int d = i % D;
      float highest = -1e30f;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) {
        highest = fmaxf(highest, shared.highest[w][query]);
      }
      float sum = 0;
      float total = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) {
        const float factor = exp2f(shared.highest[w][query] - highest);
        sum += factor * parts[(w * group + query) * D + d];
        total += factor * shared.total[w][query];
      }
      // A share without keys counts for nothing.
      store(kv_head * group + query,
            d,
            total > 0 ? sum / total : 0.0f,
            total > 0 ? highest + log2f(total) : -1e30f);
    }
    sync();
  }

  // Where answers of shares are: see StagedInput::Shares.
  static __device__ void store_answer(
      T* answers, int place, int d, float answer, float weight) {
    T* to = answers + static_cast<size_t>(place) * (D + 8);
    to[d] = from_float<T>(answer);
    if (d == 0) *reinterpret_cast<float*>(to + D) = weight;
  }
};

}  // namespace mlxlm
