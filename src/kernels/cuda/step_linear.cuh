// Products of a step kernel: tiles of 16 outputs, whose weights arrive in
// stages. The warps share out the groups of a stage and add up through shared
// memory at the end of a tile.
#pragma once

#include "step_sources.cuh"

namespace mlxlm {

template <class T, int BITS, int GROUP, bool FLOATS, int M, bool EXPERTS>
struct StepLinear {
  using Sources = StepSources<T, BITS, GROUP, FLOATS, EXPERTS>;
  using Stage = typename Sources::Stage;
  using Rows = typename StagedInput<T, BITS, GROUP, FLOATS>::Rows;
  static_assert(!FLOATS || (BITS == 4 && GROUP <= 32));
  static constexpr bool kDense = BITS == 16;
  static constexpr int kBatch = Stage::kGroups / kStepWarps;  // of a warp
  static constexpr int kLaneBytes = GROUP * BITS / 32;  // of a lane and group
  static constexpr int kWords = (kLaneBytes + 3) / 4;
  static constexpr int kXWords = GROUP / 16;  // of x, likewise
  // A tensor cores' tile has 8 columns, two for each row of x.
  static constexpr int kTileRows = M < 4 ? M : 4;
  static constexpr int kTiles = M / kTileRows;
  static constexpr int kTogether =
      4 / kTileRows < kBatch ? 4 / kTileRows : kBatch;  // groups of a tile

  static __device__ float norm_factor(const StepOperation<T>& op,
                                      const float* squares,
                                      int m) {
    if (op.norm == nullptr) return 1;
    float square = 0;
#pragma unroll
    for (int i = 0; i < kStepWarps; ++i) {
      square += squares[m * kStepWarps + i];
    }
    return rsqrtf(square / op.size + op.eps);
  }

  template <int COUNT>
  static __device__ void load_words(const unsigned char* from,
                                    u32 (&to)[COUNT]) {
    if constexpr (COUNT == 1) {
      to[0] = *reinterpret_cast<const u32*>(from);
    } else if constexpr (COUNT == 2) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      to[0] = v.x, to[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; i += 4) {
        const uint4 v = *reinterpret_cast<const uint4*>(from + i * 4);
        to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
      }
    }
  }

  // A lane's part of a group.
  static __device__ void load_weights(const unsigned char* from,
                                      u32 (&to)[kWords]) {
    if constexpr (kLaneBytes == 2) {
      to[0] = *reinterpret_cast<const unsigned short*>(from);
    } else {
      load_words(from, to);
    }
  }

  // d += a b: a 16 rows of 32 bytes, b 32 signed bytes by 8 columns.
  static __device__ void mma(
      int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }

  // The same of 16 bytes and 16 by 8.
  static __device__ void mma(int (&d)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  }

  // Four floats of 4 bits, the lowest of q, as bytes: 16 + twice the number.
  static constexpr int kFloatOffset = 16;
  static __device__ u32 bytes_of_floats(u32 q) {
    // Tables of 0x80 + 16 + or - 0, 1, 2, 3, 4, 6, 8, 12: where a nibble has
    // its highest bit, the permutation gives 0xff, the sign of what it picks.
    u32 positive;
    u32 negative;
    asm("prmt.b32 %0, %1, %2, %3;"
        : "=r"(positive)
        : "r"(0x93929190u), "r"(0x9c989694u), "r"(q));
    asm("prmt.b32 %0, %1, %2, %3;"
        : "=r"(negative)
        : "r"(0x8d8e8f90u), "r"(0x84888a8cu), "r"(q ^ 0x8888u));
    return positive & negative & 0x7f7f7f7fu;
  }

  static __device__ void multiply_group(const u32 (&low)[kWords],
                                        const u32 (&high)[kWords],
                                        const u32 (&x)[kXWords],
                                        int (&sums)[4]) {
    if constexpr (FLOATS && GROUP == 16) {
      mma(sums, bytes_of_floats(low[0]), bytes_of_floats(high[0]), x[0]);
    } else if constexpr (FLOATS) {
      mma(sums,
          bytes_of_floats(low[0]),
          bytes_of_floats(high[0]),
          bytes_of_floats(low[0] >> 16),
          bytes_of_floats(high[0] >> 16),
          x[0],
          x[1]);
    } else if constexpr (BITS == 4) {
      constexpr u32 kMask = 0x0f0f0f0f;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        mma(sums,
            low[i] & kMask,
            high[i] & kMask,
            low[i] >> 4 & kMask,
            high[i] >> 4 & kMask,
            x[2 * i],
            x[2 * i + 1]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 2) {
        mma(sums, low[i], high[i], low[i + 1], high[i + 1], x[i], x[i + 1]);
      }
    }
  }

  // Adds this warp's groups of a stage, the first of which is group `begin` of
  // x, to the sums of a tile, total[t][i]: of row lane / 4 + 8 i and row
  // result_row(t) of x, a part of which is with other lanes (join()).
  static __device__ void multiply(const Stage& stage,
                                  int begin,
                                  const Rows& rows,
                                  float (&total)[kTiles][2]) {
    if constexpr (kDense) {
      multiply_numbers(stage, begin, rows, total);
    } else {
      multiply_integers(stage, begin, rows, total);
    }
  }

  // A warp has one group. Columns of the tensor cores' tiles are high and low
  // parts of rows of x.
  static __device__ void multiply_numbers(const Stage& stage,
                                          int begin,
                                          const Rows& rows,
                                          float (&total)[kTiles][2]) {
    static_assert(kBatch == 1 && GROUP == 64);
    const int part = threadIdx.x % 4;
    const int row = threadIdx.x % 32 / 4;
    const int group = begin + threadIdx.x / 32;
    if (group >= rows.num_groups) return;
    const unsigned char* words = stage.words + row * Stage::kRowStride +
                                 threadIdx.x / 32 * Stage::kGroupBytes +
                                 part * 16;
    u32 low[2][4];
    u32 high[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      load_words(words + j * 64, low[j]);
      load_words(words + 8 * Stage::kRowStride + j * 64, high[j]);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int x_row = t * kTileRows + row / 2 % kTileRows;
      const unsigned char* from =
          rows.x + (x_row * rows.num_groups + group) * (GROUP * 4) +
          row % 2 * 64 + part * 16;
      float sums[4] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        u32 x[4];
        load_words(from + j * 128, x);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const u32 a[4] = {
              low[j][i], high[j][i], low[j][i + 1], high[j][i + 1]};
          Pair<T>::mma(sums, a, x[i], x[i + 1]);
        }
      }
      const int own_row = t * kTileRows + part % kTileRows;
      float factor = rows.groups[own_row * rows.num_groups + group].x;
      if (part >= kTileRows) factor = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        total[t][i] += factor * (sums[2 * i] + sums[2 * i + 1]);
      }
    }
  }

  // Of a group of floats.
  static __device__ float scale_of(u32 byte) {
    return GROUP == 16 ? Pair<T>::floats(Pair<T>::of_fp8(byte)).x
                       : power_of_two(byte);
  }

  // A group's scale and zero, which are so many bytes into the stage's.
  static __device__ float2 factors_at(const Stage& stage, int at) {
    if constexpr (FLOATS) {
      const float scale = 0.5f * scale_of(stage.scales[at]);
      return {scale, -kFloatOffset * scale};
    } else {
      return {to_float(*reinterpret_cast<const T*>(stage.scales + at)),
              to_float(*reinterpret_cast<const T*>(stage.zeros + at))};
    }
  }

  // Columns of the tensor cores' tiles are high and low bytes of rows of x, and
  // where those are few also different groups: each lane of four ends up with
  // the sums of a group and row of its own.
  static __device__ void multiply_integers(const Stage& stage,
                                           int begin,
                                           const Rows& rows,
                                           float (&total)[kTiles][2]) {
    const int lane = threadIdx.x % 32;
    const int part = lane % 4;
    const int row = lane / 4;
    const int first = threadIdx.x / 32 * kBatch;
    if (begin + first >= rows.num_groups) return;
    const unsigned char* words = stage.words + row * Stage::kRowStride +
                                 first * Stage::kGroupBytes + part * kLaneBytes;
    const int scales = row * Stage::kScaleStride + first * Stage::kScaleBytes;
    // Of the column's x, and of the result.
    const int x_row = row / 2 % kTileRows;
    const int x_group = min(row / 2 / kTileRows, kTogether - 1);
    const int own_group = min(part / kTileRows, kTogether - 1);
    const bool owns = part / kTileRows < kTogether;
#pragma unroll
    for (int b = 0; b < kBatch; b += kTogether) {
      u32 low[kTogether][kWords];
      u32 high[kTogether][kWords];
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        const unsigned char* from = words + (b + g) * Stage::kGroupBytes;
        load_weights(from, low[g]);
        load_weights(from + 8 * Stage::kRowStride, high[g]);
      }
      const int at = scales + (b + own_group) * Stage::kScaleBytes;
      const float2 factors[2] = {
          factors_at(stage, at),
          factors_at(stage, at + 8 * Stage::kScaleStride)};
      const int x_base = begin + first + b;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int x_at =
            (t * kTileRows + x_row) * rows.num_groups + x_base + x_group;
        u32 x[kXWords];
        load_words(rows.x + (x_at * 2 + row % 2) * GROUP + part * (GROUP / 4),
                   x);
        int sums[kTogether][4] = {};
#pragma unroll
        for (int g = 0; g < kTogether; ++g) {
          multiply_group(low[g], high[g], x, sums[g]);
        }
        int own[4] = {sums[0][0], sums[0][1], sums[0][2], sums[0][3]};
#pragma unroll
        for (int g = 1; g < kTogether; ++g) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (own_group == g) own[j] = sums[g][j];
          }
        }
        float2 group =
            rows.groups[(t * kTileRows + part % kTileRows) * rows.num_groups +
                        x_base + own_group];
        if (!owns) group = {0, 0};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float product =
              static_cast<float>(own[2 * i] * 256 + own[2 * i + 1]);
          total[t][i] +=
              factors[i].x * group.x * product + factors[i].y * group.y;
        }
      }
    }
  }

  // The row of x of a lane's sums.
  static __device__ int result_row(int tile) {
    return tile * kTileRows + threadIdx.x % 4 % kTileRows;
  }

  // Adds up what is with other lanes; true in those that have the sum.
  static __device__ bool join(float& total) {
#pragma unroll
    for (int step = kTileRows; step < 4; step *= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, step);
    }
    return threadIdx.x % 4 < kTileRows;
  }

  // The warps' parts of two tiles in turn (gated: of two pairs).
  static constexpr int kPartial = kStepWarps * 16 * M;
  struct Partials {
    float values[2][2][kPartial];  // [turn][gate, up][warp][16][M]
    unsigned long long full[2];
    unsigned long long free[2];
  };

  // Computes this block's visits, each to a tile (gated: to two), and leaves
  // the parts for results(). rows_of(visit) says what is multiplied. `partials`
  // may be those of more rows.
  template <int COUNT, class RowsOf, class Ring, class Parts>
  static __device__ void run(const StepOperation<T>& op,
                             int num_visits,
                             const RowsOf& rows_of,
                             Ring& ring,
                             RingPlace& place,
                             Parts& partials,
                             RingPlace& turn) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const int tiles = op.kind == kStepGated ? 2 : 1;
    for (int v = Sources::first_visit(op); v < num_visits; v += gridDim.x) {
      const Rows rows = rows_of(v);
      for (int t = 0; t < tiles; ++t) {
        float total[kTiles][2] = {};
        for (int begin = 0; begin < rows.num_groups; begin += Stage::kGroups) {
          barrier_wait(&ring.full[place.index], place.parity);
          multiply(ring.stages[place.index], begin, rows, total);
          __syncwarp();
          if (lane == 0) barrier_arrive(&ring.free[place.index]);
          place.advance<COUNT>();
        }
        if (t == 0) barrier_wait(&partials.free[turn.index], turn.parity ^ 1);
        float* partial = partials.values[turn.index][t];
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          float value = total[i / 2][i % 2];
          const int row = lane / 4 + i % 2 * 8;
          if (join(value)) {
            partial[(warp * 16 + row) * M + result_row(i / 2)] = value;
          }
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(&partials.full[turn.index]);
      turn.advance<2>();
    }
  }

  // The finishing warp's part: calls prepare(visit) before it waits for a tile
  // and use(visit, m, value, up) for each row of x after that, in all lanes;
  // those of lane % 16 are of row lane % 16 of the tile. `up` is of gated
  // products. Both are divided as the norm wants: squares_of(visit) has what it
  // needs of the rows, and is the same in all visits if they have several.
  template <class Parts, class SquaresOf, class Prepare, class Use>
  static __device__ void results(const StepOperation<T>& op,
                                 int num_visits,
                                 const SquaresOf& squares_of,
                                 Parts& partials,
                                 RingPlace& turn,
                                 const Prepare& prepare,
                                 const Use& use) {
    float factors[M];
    const float* known = nullptr;  // whose factors they are
    const int row = threadIdx.x % 16;
    const int half = threadIdx.x % 32 / 16;
    const bool gated = op.kind == kStepGated;
    for (int v = Sources::first_visit(op); v < num_visits; v += gridDim.x) {
      prepare(v);
      barrier_wait(&partials.full[turn.index], turn.parity);
      if (const float* squares = squares_of(v); squares != known) {
#pragma unroll
        for (int m = 0; m < M; ++m) factors[m] = norm_factor(op, squares, m);
        known = squares;
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const float* partial =
            partials.values[turn.index][gated ? half : 0] + row * M + m;
        float value = 0;
        if (gated) {
#pragma unroll
          for (int i = 0; i < kStepWarps; ++i) value += partial[i * 16 * M];
        } else {
          partial += half * (kPartial / 2);
#pragma unroll
          for (int i = 0; i < kStepWarps / 2; ++i) value += partial[i * 16 * M];
        }
        value *= factors[m];
        const float other = __shfl_xor_sync(0xffffffffu, value, 16);
        use(v, m, gated ? value : value + other, other);
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(&partials.free[turn.index]);
      turn.advance<2>();
    }
  }
};

}  // namespace mlxlm
