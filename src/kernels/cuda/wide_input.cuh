// x in the order in which products of many rows read it: blocks of 8 rows by 8
// columns in one piece, columns as weights come out of their words.
#pragma once

#include "common.cuh"

namespace mlxlm {

// Four lanes load 16 bytes of a row's weights each. The 16 columns that a
// tensor core multiplies at a time are two pairs of each lane's.
template <int BITS>
struct WideColumns {
  static constexpr int kBlock = 512 / BITS;  // columns of the four lanes
  static constexpr int kLane = kBlock / 4;   // of one
  static constexpr int kUnits = kLane / 8;   // of 8 columns, of a lane
  // Pair q of 8 columns: these two.
  static __device__ constexpr int first(int q) {
    return BITS == 4 ? q : q / 2 * 4 + q % 2;
  }
  static __device__ constexpr int second(int q) {
    return first(q) + (BITS == 4 ? 4 : 2);
  }
};

// x [num_rows, K], normalized where there is a norm, as tiles of N rows
// [tiles][K / 16][N / 8][2][8][8]; rows beyond the last are zeros. ROWS: of a
// block, 1 or 8; grid: tiles * N / ROWS.
template <class T, int BITS, int N, int ROWS>
struct WideInput {
  using Columns = WideColumns<BITS>;

  static __device__ void unpack(const uint4& from, float (&to)[8]) {
    const u32 words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = Pair<T>::floats(words[j]);
      to[2 * j] = pair.x, to[2 * j + 1] = pair.y;
    }
  }

  // 1 / rms of this thread's row.
  static __device__ float factor(const uint4* row, int size, float eps) {
    __shared__ float squares[32][ROWS];
    float square = 0;
    for (int i = threadIdx.x / ROWS; i < size / 8; i += blockDim.x / ROWS) {
      float x[8];
      unpack(row[i], x);
#pragma unroll
      for (int j = 0; j < 8; ++j) square += x[j] * x[j];
    }
#pragma unroll
    for (int step = ROWS; step < 32; step *= 2) {
      square += __shfl_xor_sync(0xffffffffu, square, step);
    }
    if (threadIdx.x % 32 < ROWS) {
      squares[threadIdx.x / 32][threadIdx.x % 32] = square;
    }
    __syncthreads();
    square = 0;
    for (int w = 0; w < blockDim.x / 32; ++w) {
      square += squares[w][threadIdx.x % ROWS];
    }
    return rsqrtf(square / size + eps);
  }

  static __device__ void run(const T* x,
                             int num_rows,
                             int size,
                             const T* norm,
                             float eps,
                             T* arranged) {
    const int m = blockIdx.x * ROWS + threadIdx.x % ROWS;
    const bool is_row = m < num_rows;
    const auto* row = reinterpret_cast<const uint4*>(
        x + static_cast<size_t>(is_row ? m : 0) * size);
    float scale = 1;
    if (norm != nullptr) scale = factor(row, size, eps);
    if (!is_row) scale = 0;
    T* tile = arranged + static_cast<size_t>(m / N) * N * size +
              m % N / 8 * 128 + m % 8 * 8;
    const int units = size / Columns::kBlock * Columns::kUnits;
    for (int i = threadIdx.x / ROWS; i < units; i += blockDim.x / ROWS) {
      const int block = i / Columns::kUnits;
      const int unit = i % Columns::kUnits;
      float values[4][8];  // of the four lanes
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const int at =
            (block * Columns::kBlock + lane * Columns::kLane) / 8 + unit;
        unpack(row[at], values[lane]);
        float weights[8];
        if (norm != nullptr) {
          unpack(reinterpret_cast<const uint4*>(norm)[at], weights);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (norm != nullptr) values[lane][j] *= weights[j];
          values[lane][j] = is_row ? values[lane][j] * scale : 0;
        }
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int step = block * (Columns::kBlock / 16) + 2 * unit + q / 2;
        u32 pairs[4];
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
          pairs[lane] = Pair<T>::of(values[lane][Columns::first(q)],
                                    values[lane][Columns::second(q)]);
        }
        *reinterpret_cast<uint4*>(tile + static_cast<size_t>(step) * 16 * N +
                                  q % 2 * 64) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
  }
};

}  // namespace mlxlm
