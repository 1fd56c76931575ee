// Products of many rows of x with affine 4- and 8-bit weights: a warpgroup
// expands the weights in its registers, as the first factor of Hopper's tensor
// cores; the second, x, comes into shared memory in the order of the weights'
// words (wide_input.cuh).
//
// A block computes tiles of 256 outputs for up to N rows. Where they would
// leave many blocks idle, all tiles are cut along K into equal shares for the
// blocks, and join() adds up the parts.
#pragma once

#include "wgmma.cuh"
#include "wide_input.cuh"

namespace mlxlm {

constexpr int kWideThreads = 512;  // that compute; one more loads x
constexpr int kWideBlockThreads = kWideThreads + 128;
constexpr int kWideOutputs = 256;  // of a tile
constexpr int kWideStage = 256;  // columns of weights that are loaded together
constexpr int kWideSlab = 64;    // columns of x, likewise

// What is multiplied. Of gate and up, tiles hold 128 outputs each.
template <class T>
struct WideProblem {
  const T* x;  // arranged
  QuantizedMatrix<T> matrices[3];
  int num_matrices;
  int size;       // K
  int num_rows;   // of x
  int num_slots;  // for a block's parts of tiles; 0: tiles are computed whole
  float* parts;   // [blocks][num_slots][256 * N]
};

// Which matrix a tile's outputs are of, and the first of those of this warp. A
// warp's 16 rows are 16 outputs or 8 of gate and of up.
template <class Matrix>
__device__ int wide_find(const Matrix* matrices,
                         int num_matrices,
                         bool gated,
                         int tile,
                         int& first) {
  constexpr int kOutputs = kWideOutputs;
  const int warp = threadIdx.x / 32;
  if (gated) {
    first = tile * (kOutputs / 2) + warp * 8;
    return 0;
  }
  int i = 0;
  first = tile * kOutputs;
  while (i + 1 < num_matrices && first >= matrices[i].num_rows) {
    first -= (matrices[i].num_rows + kOutputs - 1) / kOutputs * kOutputs;
    ++i;
  }
  first += warp * 16;
  return i;
}

template <class T, int BITS, int GROUP, int N, bool GATED>
struct WideMatmul {
  using Problem = WideProblem<T>;
  using Columns = WideColumns<BITS>;
  static constexpr int kOutputs = kWideOutputs;
  // Few: what they leave is the first cache level, where lines of scales stay
  // from stage to stage.
  static constexpr int kStages = BITS == 8 || N <= 16 ? 2 : 3;
  static constexpr int kSlabs = N > 16 ? 4 : 16;
  static constexpr int kSlabsOfStage = kWideStage / kWideSlab;
  static constexpr int kChunks = kWideStage / Columns::kBlock;
  static constexpr int kScaleBytes = kWideStage / GROUP * 2;
  static constexpr int kSums = N / 2;             // of a thread
  static constexpr int kPart = kOutputs * N / 4;  // float4s

  struct Stage {
    uint4 words[2][kChunks][kWideThreads];
    // Scales and zeros of the rows.
    unsigned char scales[kWideThreads / 32][16][2][kScaleBytes];
  };
  struct Shared {
    alignas(128) T x[kSlabs][kWideSlab * N];
    Stage stages[kStages];
    unsigned long long full[kSlabs];
    unsigned long long free[kSlabs];
  };

  // The tiles of a problem, and in what order blocks take them.
  struct Tiling {
    int num_row_tiles;
    int num_tiles;
    int num_stages;  // of a tile
    int num_blocks;

    __device__ Tiling(const Problem& p, int blocks) : num_blocks(blocks) {
      num_row_tiles = (p.num_rows + N - 1) / N;
      int outputs = 0;
      if (GATED) {
        outputs = (p.matrices[0].num_rows + kOutputs / 2 - 1) / (kOutputs / 2);
      } else {
        for (int i = 0; i < p.num_matrices; ++i) {
          outputs += (p.matrices[i].num_rows + kOutputs - 1) / kOutputs;
        }
      }
      num_tiles = outputs * num_row_tiles;
      num_stages = p.size / kWideStage;
    }
    // Of all tiles' stages, the first of a block's share.
    __device__ u32 first_unit(u32 block) const {
      return num_tiles * num_stages * block / num_blocks;
    }
    // The block that has a unit.
    __device__ u32 block_of(u32 unit) const {
      u32 block = unit * num_blocks / (num_tiles * num_stages);
      while (first_unit(block + 1) <= unit) ++block;
      return block;
    }
  };

  // A block's way through its tiles, stage by stage.
  struct Walk {
    int tile, stage, end;

    __device__ Walk(const Problem& p, const Tiling& t)
        : tile(static_cast<int>(blockIdx.x) - t.num_blocks) {
      if (p.num_slots > 0) {
        unit_ = t.first_unit(blockIdx.x);
        last_ = t.first_unit(blockIdx.x + 1);
      }
      next_tile(t);
    }
    __device__ bool done() const { return tile < 0; }
    __device__ void next_tile(const Tiling& t) {
      if (last_ < 0 && tile + t.num_blocks < t.num_tiles) {
        tile += t.num_blocks, stage = 0, end = t.num_stages;
      } else if (unit_ < last_) {
        tile = unit_ / t.num_stages;
        stage = unit_ % t.num_stages;
        end = min(t.num_stages, stage + last_ - unit_);
        unit_ += end - stage;
      } else {
        tile = -1;
      }
    }
    __device__ void advance(const Tiling& t) {
      if (++stage == end) next_tile(t);
    }

   private:
    int unit_ = 0, last_ = -1;
  };

  static __device__ int find(const Problem& p, int output_tile, int& first) {
    return wide_find(p.matrices, p.num_matrices, GATED, output_tile, first);
  }

  // Where a thread's weights of a tile come from.
  struct Sources {
    const unsigned char* words[2];
    const unsigned char* scales;  // or zeros

    __device__ void start(const Problem& p, int output_tile) {
      int first;
      const int index = find(p, output_tile, first);
      start(p.matrices[index],
            p.matrices[GATED ? 1 : index],
            GATED,
            first,
            p.size);
    }

    // This warp's rows: 16 of one matrix from `first` on, or eight of gate and
    // of up each.
    template <class Matrix>
    __device__ void start(const Matrix& matrix,
                          const Matrix& up,
                          bool gated,
                          int first,
                          int size) {
      const int lane = threadIdx.x % 32;
      const size_t row_bytes = static_cast<size_t>(size) / 8 * BITS;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto& own = i == 0 ? matrix : up;
        const int row = first + lane / 4 + (gated ? 0 : i * 8);
        words[i] = reinterpret_cast<const unsigned char*>(own.words) +
                   min(row, own.num_rows - 1) * row_bytes + lane % 4 * 16;
      }
      // Lanes 2 i and 2 i + 1: those of row i of the warp.
      const auto& own = lane / 16 == 0 ? matrix : up;
      const int row = first + (gated ? lane / 2 % 8 : lane / 2);
      scales =
          reinterpret_cast<const unsigned char*>(lane % 2 == 0 ? own.scales
                                                               : own.zeros) +
          static_cast<size_t>(min(row, own.num_rows - 1)) * (size / GROUP) * 2;
    }

    __device__ void copy(Stage& to, int stage) const {
      constexpr int kBytes = kWideStage * BITS / 8;
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          copy_in(&to.words[i][c][threadIdx.x],
                  words[i] + stage * kBytes + c * 64);
        }
      }
      copy_in<kScaleBytes>(to.scales[threadIdx.x / 32][lane / 2][lane % 2],
                           scales + stage * kScaleBytes);
    }
  };

  // 16 bytes of weights of both rows as they come out of shared memory.
  struct Chunk {
    u32 words[2][4];
    u32 scales[2];  // twice in a register, as zeros
    u32 zeros[2];

    __device__ void load(const Stage& from, int chunk) {
      const int lane = threadIdx.x % 32;
      const int group =
          (chunk * Columns::kBlock + lane % 4 * Columns::kLane) / GROUP;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto* own = from.scales[threadIdx.x / 32][lane / 4 + i * 8];
        const uint4 v = from.words[i][chunk][threadIdx.x];
        words[i][0] = v.x, words[i][1] = v.y;
        words[i][2] = v.z, words[i][3] = v.w;
        scales[i] = reinterpret_cast<const unsigned short*>(own[0])[group];
        zeros[i] = reinterpret_cast<const unsigned short*>(own[1])[group];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scales[i] = __byte_perm(scales[i], 0, 0x1010);
        zeros[i] = __byte_perm(zeros[i], 0, 0x1010);
      }
    }

    // The weights of four steps of 16 columns as the tensor cores take them.
    __device__ void expand(int part, u32 (&a)[4][4]) const {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const u32 word = words[i][BITS == 4 ? part * 2 + s / 2 : s];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const u32 integers =
                BITS == 4
                    ? Pair<T>::integers_of_nibbles(word >> (s % 2 * 8 + h * 4))
                    : Pair<T>::integers_of_bytes(word >> h * 8);
            a[s][i + 2 * h] = Pair<T>::fma(integers, scales[i], zeros[i]);
          }
        }
      }
    }
  };

  using Sums = float[kSums];

  // The thread that loads x. Its warpgroup leaves registers to the others.
  static __device__ void load(const Problem& p,
                              const Tiling& tiling,
                              Shared& shared) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x != kWideThreads) return;
    constexpr int kBytes = kWideSlab * N * 2;
    int slot = 0;
    u32 parity = 1;
    for (Walk walk(p, tiling); !walk.done(); walk.advance(tiling)) {
      const T* from =
          p.x +
          (static_cast<size_t>(walk.tile % tiling.num_row_tiles) * p.size +
           walk.stage * kWideStage) *
              N;
      for (int i = 0; i < kSlabsOfStage; ++i) {
        barrier_wait(&shared.free[slot], parity);
        barrier_expect(&shared.full[slot], kBytes);
        copy_bulk(shared.x[slot],
                  from + i * kWideSlab * N,
                  kBytes,
                  &shared.full[slot]);
        if (++slot == kSlabs) slot = 0, parity ^= 1;
      }
    }
  }

  // use(tile, sums) for each tile that is computed whole; parts are left for
  // join().
  template <class Use>
  static __device__ void run(const Problem& p, Shared& shared, const Use& use) {
    const Tiling tiling(p, gridDim.x);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlabs; ++i) {
        barrier_init(&shared.full[i], 1);
        barrier_init(&shared.free[i], kWideThreads / 128);
      }
    }
    __syncthreads();
    if (threadIdx.x >= kWideThreads) {
      load(p, tiling, shared);
    } else {
      compute(p, tiling, shared, use);
    }
  }

  // The weights on their way, some stages ahead of the products.
  struct Stream {
    const Problem& p;
    const Tiling& tiling;
    Walk walk;
    Sources from;
    int slot = 0;

    __device__ Stream(const Problem& problem, const Tiling& t)
        : p(problem), tiling(t), walk(problem, t) {
      if (!walk.done()) from.start(p, walk.tile / tiling.num_row_tiles);
    }
    __device__ void next(Shared& shared) {
      if (!walk.done()) {
        from.copy(shared.stages[slot], walk.stage);
        const int tile = walk.tile;
        walk.advance(tiling);
        if (walk.tile != tile && !walk.done()) {
          from.start(p, walk.tile / tiling.num_row_tiles);
        }
      }
      copies_commit();
      if (++slot == kStages) slot = 0;
    }
  };

  // Says that this warpgroup has multiplied with the slab before `slot`.
  static __device__ void free_slab(Shared& shared, int slot) {
    if (threadIdx.x % 128 == 0) {
      barrier_arrive(&shared.free[slot > 0 ? slot - 1 : kSlabs - 1]);
    }
  }

  template <class Use>
  static __device__ void compute(const Problem& p,
                                 const Tiling& tiling,
                                 Shared& shared,
                                 const Use& use) {
    // 96 are a thread's at the start.
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
    Stream stream(p, tiling);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) stream.next(shared);
    int stage_slot = 0;
    int slot = 0;
    u32 parity = 0;
    int part = 0;
    Walk walk(p, tiling);
    while (!walk.done()) {
      const int tile = walk.tile;
      float sums[kSums];
      u32 a[4][4];
      Chunk chunk;
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = 0;
      bool is_first = true;
      for (int left = walk.end - walk.stage; left > 0; --left) {
        copies_wait<kStages - 2>();
        __syncwarp();
        stream.next(shared);
        const Stage& stage = shared.stages[stage_slot];
        if (++stage_slot == kStages) stage_slot = 0;
#pragma unroll
        for (int i = 0; i < kSlabsOfStage; ++i) {
          constexpr int kSlabsOfChunk = Columns::kBlock / kWideSlab;
          if (i % kSlabsOfChunk == 0) chunk.load(stage, i / kSlabsOfChunk);
          // Other warpgroups multiply while this one expands.
          wgmma_wait<0>();
          if (i > 0 || !is_first) free_slab(shared, slot);
          chunk.expand(i % kSlabsOfChunk, a);
          barrier_wait(&shared.full[slot], parity);
          const u32 x = wgmma_matrix(shared.x[slot]);
          wgmma_fence();
#pragma unroll
          for (int s = 0; s < 4; ++s) {
            Wgmma<T, N>::run(sums, a[s], x + s * 16 * N * 2 / 16);
          }
          wgmma_commit();
          if (++slot == kSlabs) slot = 0, parity ^= 1;
        }
        is_first = false;
      }
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < kSums; ++i)
        asm volatile("" : "+f"(sums[i])::"memory");
      free_slab(shared, slot);
      if (p.num_slots > 0) {
        leave(p, part++, sums);
      } else {
        use(tile, sums);
      }
      walk.next_tile(tiling);
    }
  }

  static __device__ void leave(const Problem& p, int part, const Sums& sums) {
    float4* to =
        reinterpret_cast<float4*>(p.parts) +
        (static_cast<size_t>(blockIdx.x) * p.num_slots + part) * kPart +
        threadIdx.x;
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      to[i / 4 * kWideThreads] =
          make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
  }

  // Adds up the parts of tile blockIdx.x, and there of the eight rows of x from
  // blockIdx.y * 8 on: use(tile, j, sums).
  template <class Use>
  static __device__ void join(const Problem& p, int blocks, const Use& use) {
    const Tiling tiling(p, blocks);
    const int tile = blockIdx.x;
    const u32 begin = tile * tiling.num_stages;
    const u32 block = tiling.block_of(begin);
    const int count =
        tiling.block_of(begin + tiling.num_stages - 1) + 1 - block;
    // Other blocks begin with this tile.
    const int first_part = tile - tiling.first_unit(block) / tiling.num_stages;
    const float4* from = reinterpret_cast<const float4*>(p.parts) +
                         static_cast<size_t>(block) * p.num_slots * kPart +
                         blockIdx.y * kWideThreads + threadIdx.x;
    float sums[4] = {};
    constexpr int kTogether = 8;
    for (int first = 0; first < count; first += kTogether) {
      float4 parts[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int at = first + i;
        if (at >= count) break;
        const size_t place = at * p.num_slots + (at == 0 ? first_part : 0);
        parts[i] = __ldcg(from + place * kPart);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i >= count) break;
        sums[0] += parts[i].x, sums[1] += parts[i].y;
        sums[2] += parts[i].z, sums[3] += parts[i].w;
      }
    }
    use(tile, static_cast<int>(blockIdx.y), sums);
  }

  // Of eight rows of x (j says which) of a tile: calls
  // use(matrix, output, row of x, values) for eight outputs of this warp at a
  // time, of which a lane has output lane / 4 and the rows 2 (lane % 4) and the
  // next; gated: values of gate, of up. Rows and outputs beyond the last are
  // among them.
  template <class Use>
  static __device__ void each(
      const Problem& p, int tile, int j, const float* sums, const Use& use) {
    const int num_row_tiles = (p.num_rows + N - 1) / N;
    const int m = tile % num_row_tiles * N + j * 8;
    int n;
    const int index = find(p, tile / num_row_tiles, n);
    use(index, n, m, sums);
    if (!GATED) use(index, n + 8, m, sums + 2);
  }
};

}  // namespace mlxlm
