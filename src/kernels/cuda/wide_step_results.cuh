// What becomes of a product in a step of many rows: sums of blocks' shares are
// added up and go into the state, attention's heads, the MLP's hidden values or
// the logits, and where a product follows, as its x in the order of
// wide_input.cuh.
#pragma once

#include "step_attention.cuh"
#include "wide_output.cuh"

namespace mlxlm {

// What a step works on. Rows are one token of a sequence each.
template <class T>
struct WideStepArguments {
  const StepOperation<T>* operations;  // the first is the embedding
  int num_operations;
  int num_layers;
  // [rows, 2 layers + 1]: addresses of keys and values, [Hkv, capacity, D], of
  // each layer; the capacity.
  const unsigned long long* tables;
  const int* tokens;     // [rows]
  const int* positions;  // [rows]
  int num_rows;
  int num_heads;
  int num_kv_heads;
  int most_shares;  // of a row's keys
  int vocabulary_size;
  float* logits;  // [rows, V]
  unsigned long long* barrier;
  const float* frequencies;  // of the rope: [rotated / 2]
  float* state;              // as parts, of tiles of the state
  float* squares;            // of the state: [tiles, N]
  T* state_x;                // the state times the norm's weights, arranged
  T* other_x;     // attention's answers or the MLP's hidden values, arranged
  float* parts;   // [blocks][slots][256 * N]
  float* heads;   // [rows, (H + 2 Hkv) D]
  T* answers;     // of attention's shares: see StagedInput::Shares
  float* angles;  // [rows, rotated]: cosines, sines
};

// Of the computing warps.
__device__ inline void wide_sync() {
  asm volatile("bar.sync 5, %0;" ::"n"(kWideThreads) : "memory");
}

// Tiles have 256 outputs (of gate and up 128 each) by N rows. A thread's four
// sums of eight rows j: outputs lane / 4 and that plus 8 of its warp's 16
// (gated: of gate and up), rows 2 (lane % 4) and the next of each.
template <class T, int BITS, int GROUP, int N, int D>
struct WideStepResults {
  using Arguments = WideStepArguments<T>;
  using Operation = StepOperation<T>;
  using Columns = WideColumns<BITS>;
  static constexpr int kOutputs = kWideOutputs;
  static constexpr int kPart = kOutputs * N / 4;  // float4s
  static constexpr int kWarps = kWideThreads / 32;

  struct Shared {
    float factors[N];  // that the norm multiplies rows by
    float squares[kWarps][8];
  };

  // Of all tiles' stages, the first of a block's share. Where blocks are more
  // than stages, the last ones have none.
  static __device__ u32 first_unit(const Operation& op, u32 block) {
    const u32 units = op.num_tiles * (op.size / kWideStage);
    const u32 blocks = min(units, gridDim.x);
    return units * min(block, blocks) / blocks;
  }

  static __device__ int find(const Operation& op, int tile, int& first) {
    return wide_find(
        op.matrices, op.num_matrices, op.kind == kStepGated, tile, first);
  }

  // Calls use(tile, j) for this block's part of tiles by eight rows.
  template <class Use>
  static __device__ void each_unit(const Arguments& a,
                                   int num_tiles,
                                   const Use& use) {
    const int eights = (a.num_rows + 7) / 8;
    for (int unit = blockIdx.x; unit < num_tiles * eights; unit += gridDim.x) {
      use(unit / eights, unit % eights);
    }
  }

  static __device__ void leave(const Arguments& a,
                               const Operation& op,
                               int part,
                               const float (&sums)[N / 2]) {
    float4* to =
        reinterpret_cast<float4*>(a.parts) +
        (static_cast<size_t>(blockIdx.x) * op.num_slots + part) * kPart +
        threadIdx.x;
#pragma unroll
    for (int i = 0; i < N / 2; i += 4) {
      if (i * 2 >= a.num_rows) break;
      __stcg(to + i / 4 * kWideThreads,
             make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
    }
  }

  // Where the parts of a tile's eight rows j are.
  struct Parts {
    const float4* from;
    int count;
    int first_part;  // of the first block; others begin with this tile

    __device__ void find(const Arguments& a,
                         const Operation& op,
                         int tile,
                         int j) {
      const u32 stages = op.size / kWideStage;
      const u32 units = op.num_tiles * stages;
      const u32 begin = tile * stages;
      auto block_of = [&](u32 unit) {
        u32 block = unit * min(units, gridDim.x) / units;
        while (first_unit(op, block + 1) <= unit) ++block;
        return block;
      };
      const u32 block = block_of(begin);
      count = block_of(begin + stages - 1) + 1 - block;
      first_part = tile - first_unit(op, block) / stages;
      from = reinterpret_cast<const float4*>(a.parts) +
             static_cast<size_t>(block) * op.num_slots * kPart +
             j * kWideThreads + threadIdx.x;
    }

    __device__ void add_up(const Operation& op, float (&sums)[4]) const {
      constexpr int kTogether = 10;
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = 0;
      for (int first = 0; first < count; first += kTogether) {
        float4 parts[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int at = min(first + i, count - 1);
          const size_t place = at * op.num_slots + (at == 0 ? first_part : 0);
          parts[i] = __ldcg(from + place * kPart);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (first + i >= count) break;
          sums[0] += parts[i].x, sums[1] += parts[i].y;
          sums[2] += parts[i].z, sums[3] += parts[i].w;
        }
      }
    }
  };

  // What the norm of a product's input multiplies rows by.
  static __device__ void take_factors(const Arguments& a,
                                      const Operation& op,
                                      Shared& shared) {
    if (op.input != kInputState || threadIdx.x >= N) return;
    constexpr int kTogether = 16;  // reads that wait together
    const int tiles = op.size / kOutputs;
    float square = 0;
    for (int first = 0; first < tiles; first += kTogether) {
      float parts[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        parts[i] =
            __ldcg(a.squares + min(first + i, tiles - 1) * N + threadIdx.x);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i < tiles) square += parts[i];
      }
    }
    shared.factors[threadIdx.x] = rsqrtf(square / op.size + op.eps);
  }

  // Where x of column k, a multiple of 8, and the rows 8 j on is: pair q of its
  // columns (WideColumns) and row r is at step_offset(q) + 8 r.
  struct Arranged {
    T* to;
    __device__ Arranged(T* x, int k, int j) {
      const int block = k / Columns::kBlock;
      const int lane = k % Columns::kBlock / Columns::kLane;
      const int unit = k % Columns::kLane / 8;
      const int step = block * (Columns::kBlock / 16) + 2 * unit;
      to = x + static_cast<size_t>(step) * 16 * N + j * 128 + lane * 2;
    }
    static __device__ int offset(int q) { return q / 2 * 16 * N + q % 2 * 64; }
    // Of a column among eight: its pair, and whether it is the second there.
    static __device__ int pair_of(int column) {
      return BITS == 4 ? column % 4 : column / 4 * 2 + column % 2;
    }
    static constexpr int kSecond = BITS == 4 ? 4 : 2;
  };

  // Puts a warp's eight columns from k on, of the eight rows j: lanes have
  // column lane / 4 and rows 2 (lane % 4) and the next.
  static __device__ void put(T* x, int k, int j, float first, float second) {
    const int lane = threadIdx.x % 32;
    const int column = lane / 4;
    const bool is_second = (column & Arranged::kSecond) != 0;
    // The pair of the first row goes to the lane of its first column.
    const float given = is_second ? first : second;
    const float taken =
        __shfl_xor_sync(0xffffffffu, given, Arranged::kSecond * 4);
    const u32 pair =
        is_second ? Pair<T>::of(taken, second) : Pair<T>::of(first, taken);
    const int row = lane % 4 * 2 + (is_second ? 1 : 0);
    const Arranged place(x, k, j);
    *reinterpret_cast<u32*>(
        place.to + Arranged::offset(Arranged::pair_of(column)) + row * 8) =
        pair;
  }

  static __device__ void put_one(T* x, int k, int m, float value) {
    const int column = k % 8;
    const Arranged place(x, k - column, m / 8);
    place.to[Arranged::offset(Arranged::pair_of(column)) + m % 8 * 8 +
             ((column & Arranged::kSecond) != 0 ? 1 : 0)] =
        from_float<T>(value);
  }

  static __device__ void embed(const Arguments& a,
                               const Operation& op,
                               int tile,
                               int j,
                               Shared& shared) {
    const auto& table = op.matrices[0];
    const int lane = threadIdx.x % 32;
    float state[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k =
          tile * kOutputs + threadIdx.x / 32 * 16 + lane / 4 + i / 2 * 8;
      const int m = min(j * 8 + lane % 4 * 2 + i % 2, a.num_rows - 1);
      const size_t row = a.tokens[m];
      const u32 word = table.words[row * (op.size * BITS / 32) + k * BITS / 32];
      const u32 q = word >> (k * BITS % 32) & ((1u << BITS) - 1);
      const size_t group = row * (op.size / GROUP) + k / GROUP;
      // Rounded as the plain operation rounds.
      const float value = to_float(from_float<T>(
          to_float(table.scales[group]) * q + to_float(table.zeros[group])));
      state[i] = to_float(from_float<T>(value * op.scale));
    }
    put_state(a, tile, j, state, NormWeights(op, tile), shared);
  }

  // Those of the next product's norm for this thread's two outputs.
  struct NormWeights {
    float low, high;
    __device__ NormWeights() {}
    __device__ NormWeights(const Operation& op, int tile) {
      const T* from = op.norm + tile * kOutputs + threadIdx.x / 32 * 16 +
                      threadIdx.x % 32 / 4;
      low = to_float(from[0]), high = to_float(from[8]);
    }
  };

  // Keeps the state and makes the next product's x of it. Between two of them
  // is a wide_sync().
  static __device__ void put_state(const Arguments& a,
                                   int tile,
                                   int j,
                                   const float (&state)[4],
                                   const NormWeights& norm,
                                   Shared& shared) {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    reinterpret_cast<float4*>(a.state)[static_cast<size_t>(tile) * kPart +
                                       j * kWideThreads + threadIdx.x] =
        make_float4(state[0], state[1], state[2], state[3]);
    const int k = tile * kOutputs + warp * 16;
    put(a.state_x, k, j, state[0] * norm.low, state[1] * norm.low);
    put(a.state_x, k + 8, j, state[2] * norm.high, state[3] * norm.high);
    float squares[2] = {state[0] * state[0] + state[2] * state[2],
                        state[1] * state[1] + state[3] * state[3]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        squares[i] += __shfl_xor_sync(0xffffffffu, squares[i], step);
      }
      if (lane < 4) shared.squares[warp][lane * 2 + i] = squares[i];
    }
    wide_sync();
    if (threadIdx.x < 8) {
      float square = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) square += shared.squares[w][threadIdx.x];
      a.squares[tile * N + j * 8 + threadIdx.x] = square;
    }
  }

  // Whole sums of a tile; those that go into the state are always parts first.
  static __device__ void use_whole(const Arguments& a,
                                   const Operation& op,
                                   int tile,
                                   const float (&sums)[N / 2],
                                   const Shared& shared) {
    if (op.output == kOutputHidden) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        if (j * 8 < a.num_rows)
          put_hidden(a, op, tile, j, sums + j * 4, shared);
      }
    } else {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        if (j * 8 < a.num_rows) put_plain(a, op, tile, j, sums + j * 4, shared);
      }
    }
  }

  // Adds up the parts of a tile's eight rows j and uses the sums. What doesn't
  // depend on them is read before they are there.
  struct Joined {
    int tile, j;
    Parts parts;
    float4 state;
    NormWeights norm;
    float low, high;  // biases

    __device__ void begin(const Arguments& a,
                          const Operation& op,
                          int the_tile,
                          int the_j) {
      tile = the_tile, j = the_j;
      parts.find(a, op, tile, j);
      if (op.output != kOutputState) return;
      state = __ldcg(reinterpret_cast<const float4*>(a.state) +
                     static_cast<size_t>(tile) * kPart + j * kWideThreads +
                     threadIdx.x);
      norm = NormWeights(op, tile);
      int first;
      const auto& matrix = op.matrices[WideStepResults::find(op, tile, first)];
      low = bias(matrix, first);
      high = bias(matrix, first + 8);
    }

    __device__ void finish(const Arguments& a,
                           const Operation& op,
                           Shared& shared) const {
      float sums[4];
      parts.add_up(op, sums);
      if (op.output == kOutputState) {
        const float sum[4] = {state.x + op.scale * (sums[0] + low),
                              state.y + op.scale * (sums[1] + low),
                              state.z + op.scale * (sums[2] + high),
                              state.w + op.scale * (sums[3] + high)};
        put_state(a, tile, j, sum, norm, shared);
      } else if (op.output == kOutputHidden) {
        put_hidden(a, op, tile, j, sums, shared);
      } else {
        put_plain(a, op, tile, j, sums, shared);
      }
    }
  };

  static __device__ void put_hidden(const Arguments& a,
                                    const Operation& op,
                                    int tile,
                                    int j,
                                    const float* sums,
                                    const Shared& shared) {
    int first;
    find(op, tile, first);
    const int m = j * 8 + threadIdx.x % 4 * 2;
    const float factors[2] = {shared.factors[m], shared.factors[m + 1]};
    const float gate = bias(op.matrices[0], first);
    const float up = bias(op.matrices[1], first);
    put(a.other_x,
        first,
        j,
        silu(factors[0] * sums[0] + gate) * (factors[0] * sums[2] + up),
        silu(factors[1] * sums[1] + gate) * (factors[1] * sums[3] + up));
  }

  // To attention's heads or the logits.
  static __device__ void put_plain(const Arguments& a,
                                   const Operation& op,
                                   int tile,
                                   int j,
                                   const float* sums,
                                   const Shared& shared) {
    int first;
    const auto& matrix = op.matrices[find(op, tile, first)];
    const int lane = threadIdx.x % 32;
    const int m = j * 8 + lane % 4 * 2;
    const bool is_logits = op.output == kOutputLogits;
    float* to = is_logits ? a.logits : a.heads + matrix.first_output;
    const int width =
        is_logits ? a.vocabulary_size : (a.num_heads + 2 * a.num_kv_heads) * D;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = first + lane / 4 + i / 2 * 8;
      if (n >= matrix.num_rows || m + i % 2 >= a.num_rows) continue;
      to[static_cast<size_t>(m + i % 2) * width + n] =
          shared.factors[m + i % 2] * sums[i] + bias(matrix, first + i / 2 * 8);
    }
  }

  // Of this lane's output, from output n on.
  static __device__ float bias(const StepMatrix<T>& matrix, int n) {
    if (matrix.bias == nullptr) return 0;
    return to_float(matrix.bias[min(n + static_cast<int>(threadIdx.x) % 32 / 4,
                                    matrix.num_rows - 1)]);
  }

  static __device__ float silu(float x) { return x / (1 + __expf(-x)); }

  // Joins attention's shares.
  static __device__ void combine(const Arguments& a,
                                 const Operation& op,
                                 int shares) {
    const int eights = a.num_heads * D / 8;
    for (int i = blockIdx.x * kWideThreads + threadIdx.x;
         i < a.num_rows * eights;
         i += gridDim.x * kWideThreads) {
      const int m = i / eights;
      const int k = i % eights * 8;
      const typename StagedInput<T, BITS, GROUP>::template Shares<D> from{
          a.answers + static_cast<size_t>(m) * a.num_heads * shares * (D + 8),
          op.sinks,
          shares};
      typename StagedInput<T, BITS, GROUP>::template Shares<D>::Read read;
      float x[8];
      from.start(k, read);
      from.finish(k, read, x);
      const Arranged place(a.other_x, k, m / 8);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        *reinterpret_cast<u32*>(place.to + Arranged::offset(q) + m % 8 * 8) =
            Pair<T>::of(x[Columns::first(q)], x[Columns::second(q)]);
      }
    }
  }
};

}  // namespace mlxlm
