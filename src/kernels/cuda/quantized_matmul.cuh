// Products of a few rows of x with 4- and 8-bit weights, affine ones or floats:
// every weight is read once, becomes a number of type T in registers and is
// multiplied by tensor cores; each group's scale and zero are applied to its
// float32 sum.
//
// A block computes tiles of 16 outputs for all rows of x; its warps share out
// the groups of K and add up through shared memory. A tensor-core tile takes
// its 16 values of k in any order as long as both sides agree, so that a
// thread's words of weights serve as they lie in memory.
#pragma once

#include "quantized_weights.cuh"

namespace mlxlm {

constexpr int kMatmulWarps = 8;
constexpr int kMatmulThreads = kMatmulWarps * 32;

// Rows of x, at most the M of the kernel; norm_weight null: x as it is.
template <class T>
struct NormedRows {
  const T* x;  // [num_rows, K]
  int num_rows;
  const T* norm_weight;
  float eps;
};

// M: rows of x at most, up to 16. VISIT: tiles whose results belong together.
// CHUNK: values of each row of x that are in shared memory at a time.
template <class T,
          int BITS,
          int GROUP,
          bool FLOATS,
          int M,
          int VISIT,
          int CHUNK>
struct FewRowsMatmul {
  static constexpr int kColumnTiles = (M + 7) / 8;
  static constexpr int kStride = CHUNK / 2 + 4;  // words; spreads the banks
  using Weights = GroupWeights<T, BITS, GROUP, FLOATS>;
  static constexpr int kGroup = Weights::kGroup;
  static constexpr int kGroups = CHUNK / kGroup;  // of a chunk
  static constexpr int kBatch = 4;                // groups a warp loads at once
  static constexpr int kWords = kGroup * BITS / 128;  // of a thread and group
  static constexpr int kPairs = kGroup / 8;           // of x, likewise
  static_assert(kGroups % kBatch == 0);

  struct Shared {
    u32 x[M * kStride];
    // Of two visits in turn, so that one barrier per tile is enough.
    float partial[2 * VISIT][kMatmulWarps * 16 * M];
    float sums[M * kGroups];     // of the groups of x
    float squares[M * kGroups];  // likewise, before the norm's weight
    float square[M];
  };

  struct Batch {
    u32 low[kBatch][kWords];   // row lane / 4
    u32 high[kBatch][kWords];  // row lane / 4 + 8
    u32 low_scale;             // what there is of group lane % 4
    u32 high_scale;
  };

  static __device__ void load_words(const u32* from, u32 (&to)[kWords]) {
    if constexpr (kWords == 1) {
      to[0] = __ldcs(from);
    } else if constexpr (kWords == 2) {
      uint2 v = __ldcs(reinterpret_cast<const uint2*>(from));
      to[0] = v.x, to[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        uint4 v = __ldcs(reinterpret_cast<const uint4*>(from + i));
        to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
      }
    }
  }

  static __device__ void load(const QuantizedMatrix<T>& w,
                              int first_row,
                              int first_group,
                              int num_groups,
                              Batch& batch) {
    const int lane = threadIdx.x % 32;
    const int part = lane % 4;
    const int last = w.num_rows - 1;
    const size_t low = min(first_row + lane / 4, last);
    const size_t high = min(first_row + lane / 4 + 8, last);
    const size_t row_words = static_cast<size_t>(num_groups) * 4 * kWords;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int group = min(first_group + b, num_groups - 1);
      const size_t at = static_cast<size_t>(group) * 4 * kWords + part * kWords;
      load_words(w.words + low * row_words + at, batch.low[b]);
      load_words(w.words + high * row_words + at, batch.high[b]);
    }
    const int group = min(first_group + part, num_groups - 1);
    batch.low_scale = Weights::load_scale(w, low * num_groups + group);
    batch.high_scale = Weights::load_scale(w, high * num_groups + group);
  }

  // Puts values [begin, begin + CHUNK) of the rows into shared memory, in the
  // order in which the weights come out of their words, times the norm's
  // weight. Its division by the length waits for the results.
  static __device__ void stage(const NormedRows<T>& from,
                               int size,
                               int begin,
                               Shared& shared) {
    const int count = min(CHUNK, size - begin);
    const int end = from.num_rows * count;
    const bool norm = from.norm_weight != nullptr;
    // Whole warps, for the sums of groups.
    for (int base = threadIdx.x / 32 * 256; base < end;
         base += kMatmulThreads * 8) {
      const int i = base + threadIdx.x % 32 * 8;
      const int m = i / count;
      const int k = i - m * count;
      u32 raw[4] = {};
      if (i < end) {
        uint4 v = *reinterpret_cast<const uint4*>(
            from.x + static_cast<size_t>(m) * size + begin + k);
        raw[0] = v.x, raw[1] = v.y, raw[2] = v.z, raw[3] = v.w;
      }
      float square = 0;
      if (i < end && norm) {
        uint4 n = *reinterpret_cast<const uint4*>(from.norm_weight + begin + k);
        const u32 weights[4] = {n.x, n.y, n.z, n.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float2 x = Pair<T>::floats(raw[j]);
          float2 w = Pair<T>::floats(weights[j]);
          square += x.x * x.x + x.y * x.y;
          raw[j] = Pair<T>::of(x.x * w.x, x.y * w.y);
        }
      }
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 x = Pair<T>::floats(raw[j]);
        sum += x.x + x.y;
      }
      sum = lane_sum<kGroup / 8>(sum);
      if (norm) square = lane_sum<kGroup / 8>(square);
      if (i >= end) continue;
      if (k % kGroup == 0) {
        shared.sums[m * kGroups + k / kGroup] = sum;
        shared.squares[m * kGroups + k / kGroup] = square;
      }
      uint4 ordered;
      if constexpr (BITS == 4) {  // (0, 4) (1, 5) (2, 6) (3, 7)
        ordered = {__byte_perm(raw[0], raw[2], 0x5410),
                   __byte_perm(raw[0], raw[2], 0x7632),
                   __byte_perm(raw[1], raw[3], 0x5410),
                   __byte_perm(raw[1], raw[3], 0x7632)};
      } else {  // (0, 2) (1, 3), twice
        ordered = {__byte_perm(raw[0], raw[1], 0x5410),
                   __byte_perm(raw[0], raw[1], 0x7632),
                   __byte_perm(raw[2], raw[3], 0x5410),
                   __byte_perm(raw[2], raw[3], 0x7632)};
      }
      *reinterpret_cast<uint4*>(&shared.x[m * kStride + k / 2]) = ordered;
    }
  }

  // Adds the squares of the chunk in shared memory to those of the rows; seen
  // by the others after the next barrier.
  static __device__ void add_squares(int num_rows, int groups, Shared& shared) {
    const int lane = threadIdx.x % 32;
    for (int m = threadIdx.x / 32; m < num_rows; m += kMatmulWarps) {
      float sum = 0;
      for (int g = lane; g < groups; g += 32) {
        sum += shared.squares[m * kGroups + g];
      }
      sum = lane_sum<32>(sum);
      if (lane == 0) shared.square[m] += sum;
    }
  }

  static __device__ void multiply_group(const u32 (&low)[kWords],
                                        const u32 (&high)[kWords],
                                        const u32 (&x)[kColumnTiles][kPairs],
                                        u32 low_factor,
                                        u32 high_factor,
                                        float (&sums)[kColumnTiles][4]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (BITS == 4) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const u32 a[4] = {Weights::numbers(low[i], 8 * s, low_factor),
                            Weights::numbers(high[i], 8 * s, high_factor),
                            Weights::numbers(low[i], 8 * s + 4, low_factor),
                            Weights::numbers(high[i], 8 * s + 4, high_factor)};
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
            Pair<T>::mma(
                sums[c], a, x[c][4 * i + 2 * s], x[c][4 * i + 2 * s + 1]);
          }
        }
      } else {
        const u32 a[4] = {Weights::numbers(low[i], 0, low_factor),
                          Weights::numbers(high[i], 0, high_factor),
                          Weights::numbers(low[i], 8, low_factor),
                          Weights::numbers(high[i], 8, high_factor)};
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          Pair<T>::mma(sums[c], a, x[c][2 * i], x[c][2 * i + 1]);
        }
      }
    }
  }

  static __device__ void multiply(const Batch& batch,
                                  int first_group,  // within the chunk
                                  const Shared& shared,
                                  int valid_groups,
                                  float (&total)[kColumnTiles][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b >= valid_groups) break;
      const int group = first_group + b;
      u32 x[kColumnTiles][kPairs];
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int m = c * 8 + lane / 4;
#pragma unroll
        for (int j = 0; j < kPairs; j += 4) {
          uint4 v = {0, 0, 0, 0};
          if (m < M) {
            v = *reinterpret_cast<const uint4*>(
                &shared.x[m * kStride + group * (kGroup / 2) +
                          (lane % 4) * kPairs + j]);
          }
          x[c][j] = v.x, x[c][j + 1] = v.y, x[c][j + 2] = v.z,
          x[c][j + 3] = v.w;
        }
      }
      const int holder = lane / 4 * 4 + b;
      const u32 low_scale = __shfl_sync(0xffffffffu, batch.low_scale, holder);
      const u32 high_scale = __shfl_sync(0xffffffffu, batch.high_scale, holder);
      float sums[kColumnTiles][4] = {};
      multiply_group(batch.low[b],
                     batch.high[b],
                     x,
                     Weights::weight_factor(low_scale),
                     Weights::weight_factor(high_scale),
                     sums);
      const float2 low = Weights::factors_of(low_scale);
      const float2 high = Weights::factors_of(high_scale);
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
        for (int i = 0; i < (M == 1 ? 1 : 2); ++i) {
          const int m = c * 8 + lane % 4 * 2 + i;
          const float x_sum = m < M ? shared.sums[m * kGroups + group] : 0.0f;
          total[c][i] += low.x * sums[c][i] + low.y * x_sum;
          total[c][i + 2] += high.x * sums[c][i + 2] + high.y * x_sum;
        }
      }
    }
  }

  // Puts the parts of a tile where the other warps find them.
  static __device__ void leave(const float (&total)[kColumnTiles][4],
                               float* partial) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int m = c * 8 + lane % 4 * 2 + i % 2;
        const int row = lane / 4 + i / 2 * 8;
        if (m < M) partial[(warp * 16 + row) * M + m] = total[c][i];
      }
    }
  }

  // The tiles of a block: VISIT neighbours, then those gridDim.x visits on.
  static __device__ int after(int tile) {
    return (tile + 1) % VISIT != 0 ? tile + 1
                                   : tile + 1 + (gridDim.x - 1) * VISIT;
  }

  // place(tile, use) calls use(matrix, first row) and result(tile, turn,
  // shared) is called by every thread once the visit that ends with that tile
  // is done: partial[turn] is of that tile.
  template <class Place, class Result>
  static __device__ void run(int num_tiles,
                             const NormedRows<T>& x,
                             int size,
                             const Place& place,
                             const Result& result) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int num_groups = size / kGroup;
    const int first_group = threadIdx.x / 32 * kBatch;
    const int first_tile = blockIdx.x * VISIT;
    if (threadIdx.x < M) shared.square[threadIdx.x] = 0;
    // The next batch of weights is on its way while one is multiplied, across
    // tiles and, at the start, while x is made ready.
    int ahead_tile = first_group < num_groups ? first_tile : num_tiles;
    int ahead_group = first_group;
    auto load_next = [&](Batch& batch) {
      if (ahead_tile >= num_tiles) return;
      place(ahead_tile, [&](const QuantizedMatrix<T>& w, int first_row) {
        load(w, first_row, ahead_group, num_groups, batch);
      });
      ahead_group += kMatmulWarps * kBatch;
      if (ahead_group >= num_groups) {
        ahead_group = first_group;
        ahead_tile = after(ahead_tile);
      }
    };
    Batch batch;
    load_next(batch);
    int turn = 0;
    for (int tile = first_tile; tile < num_tiles; tile = after(tile)) {
      float total[kColumnTiles][4] = {};
      int group = first_group;
      for (int begin = 0; begin < size; begin += CHUNK) {
        const int first = begin / kGroup;
        const int end = min(first + kGroups, num_groups);
        if (tile == first_tile || size > CHUNK) {
          __syncthreads();
          stage(x, size, begin, shared);
          __syncthreads();
          if (tile == first_tile && x.norm_weight != nullptr) {
            add_squares(x.num_rows, end - first, shared);
          }
        }
        for (; group < end; group += kMatmulWarps * kBatch) {
          Batch following;
          load_next(following);
          multiply(batch, group - first, shared, num_groups - group, total);
          batch = following;
        }
      }
      leave(total, shared.partial[turn]);
      __syncthreads();
      if ((tile + 1) % VISIT == 0) result(tile, turn, shared);
      turn = (turn + 1) % (2 * VISIT);
    }
  }

  // What the norm divides row m by, as a factor.
  static __device__ float norm_factor(const NormedRows<T>& x,
                                      int size,
                                      const Shared& shared,
                                      int m) {
    if (x.norm_weight == nullptr) return 1;
    return rsqrtf(shared.square[m] / size + x.eps);
  }

  // The sum of the warps' parts of a tile.
  static __device__ float sum(const float* partial, int row, int m) {
    float y = 0;
#pragma unroll
    for (int i = 0; i < kMatmulWarps; ++i) y += partial[(i * 16 + row) * M + m];
    return y;
  }
};

// y = x W^T (+ bias) for up to three matrices over the same x, which is
// normalized first where norm_weight is given; y = residual + scale * y where a
// residual is given (of the first matrix).
template <class T,
          int BITS,
          int GROUP,
          bool FLOATS,
          int M,
          int CHUNK,
          int COUNT>
__device__ void norm_linear(const QuantizedMatrix<T> (&matrices)[COUNT],
                            T* const (&y)[COUNT],
                            const NormedRows<T>& x,
                            const T* residual,
                            float scale,
                            int size) {
  using Matmul = FewRowsMatmul<T, BITS, GROUP, FLOATS, M, 1, CHUNK>;
  int tiles[COUNT];
  int num_tiles = 0;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    tiles[i] = (matrices[i].num_rows + 15) / 16;
    num_tiles += tiles[i];
  }
  // Calls use(i, first row) for the matrix i of the tile.
  auto find = [&](int tile, const auto& use) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (tile >= 0 && tile < tiles[i]) use(i, tile * 16);
      tile -= tiles[i];
    }
  };
  auto place = [&](int tile, const auto& use) {
    find(tile, [&](int i, int first_row) { use(matrices[i], first_row); });
  };
  Matmul::run(
      num_tiles, x, size, place, [&](int tile, int turn, const auto& shared) {
        const int row = threadIdx.x % 16;
        const int m = threadIdx.x / 16;
        if (m >= x.num_rows) return;
        find(tile, [&](int i, int first_row) {
          const int n = first_row + row;
          if (n >= matrices[i].num_rows) return;
          float value = Matmul::sum(shared.partial[turn], row, m) *
                        Matmul::norm_factor(x, size, shared, m);
          if (matrices[i].bias != nullptr)
            value += to_float(matrices[i].bias[n]);
          const size_t at = static_cast<size_t>(m) * matrices[i].num_rows + n;
          if (residual != nullptr)
            value = to_float(residual[at]) + scale * value;
          y[i][at] = from_float<T>(value);
        });
      });
}

// y = gate_function(x Wg^T) * (x Wu^T).
template <class T,
          int BITS,
          int GROUP,
          bool FLOATS,
          int M,
          int CHUNK,
          class Gate>
__device__ void norm_gated(const QuantizedMatrix<T>& gate,
                           const QuantizedMatrix<T>& up,
                           T* y,
                           const NormedRows<T>& x,
                           int size,
                           const Gate& gate_function) {
  using Matmul = FewRowsMatmul<T, BITS, GROUP, FLOATS, M, 2, CHUNK>;
  auto place = [&](int tile, const auto& use) {
    if (tile % 2 == 0) {
      use(gate, tile / 2 * 16);
    } else {
      use(up, tile / 2 * 16);
    }
  };
  const int num_tiles = (gate.num_rows + 15) / 16 * 2;
  Matmul::run(
      num_tiles, x, size, place, [&](int tile, int turn, const auto& shared) {
        const int row = threadIdx.x % 16;
        const int m = threadIdx.x / 16;
        const int n = tile / 2 * 16 + row;
        if (m >= x.num_rows || n >= gate.num_rows) return;
        const float factor = Matmul::norm_factor(x, size, shared, m);
        float g = Matmul::sum(shared.partial[turn - 1], row, m) * factor;
        float u = Matmul::sum(shared.partial[turn], row, m) * factor;
        if (gate.bias != nullptr) g += to_float(gate.bias[n]);
        if (up.bias != nullptr) u += to_float(up.bias[n]);
        // Rounded where the plain operations round.
        const float activated =
            to_float(from_float<T>(gate_function(to_float(from_float<T>(g)))));
        y[static_cast<size_t>(m) * gate.num_rows + n] =
            from_float<T>(activated * to_float(from_float<T>(u)));
      });
}

}  // namespace mlxlm
