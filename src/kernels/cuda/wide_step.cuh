// A whole decoding step of up to 128 rows as one kernel, as step.cuh does one
// row: one block on each processor runs the products of a program one after the
// other, with the tensor cores (wide_matmul.cuh). The weights of the next ones
// are on their way while blocks wait for each other.
//
// Each product ends in two parts: blocks leave sums of their shares of K, and
// once all have, add them up (join()). What stands between a layer's products
// is done there: the norm's weights, the residual, rope, attention.
#pragma once

#include "wide_step_results.cuh"

namespace mlxlm {

template <class T,
          int BITS,
          int GROUP,
          int N,
          int D,
          int ROTATED,
          bool TRADITIONAL,
          int QUERIES>
struct WideStep {
  using Matmul = WideMatmul<T, BITS, GROUP, N, false>;
  using Columns = WideColumns<BITS>;
  using Operation = StepOperation<T>;
  using Results = WideStepResults<T, BITS, GROUP, N, D>;
  using Attention = StepAttention<T, D, ROTATED, TRADITIONAL, QUERIES>;
  using Arguments = WideStepArguments<T>;
  static constexpr int kStages = Matmul::kStages;
  // Of x: so many parts of a stage (of 64 columns) come together.
  static constexpr int kSlabParts = N > 64 ? 1 : kWideStage / kWideSlab;
  static constexpr int kSlabs = N > 16 && N <= 64 ? 2 : 4;
  static constexpr int kSlab = kSlabParts * kWideSlab * N;
  static constexpr int kTeams = kWideThreads / kStepThreads;
  static constexpr int kParts = kStepWarps * QUERIES * D;  // of a team
  // Operations' records in shared memory: those that weights are loaded of.
  static constexpr int kRecords = 8;
  static constexpr int kAhead = 5;

  struct Shared {
    union {
      alignas(128) T x[kSlabs][kSlab];
      float parts[kTeams][kParts];  // of attention
    };
    typename Matmul::Stage stages[kStages];
    typename Attention::Shared attention[kTeams];
    Operation records[kRecords];
    typename Results::Shared results;
    int most_keys;
    unsigned long long full[kSlabs];
    unsigned long long free[kSlabs];
    GridBarrier barrier;
    volatile int ready;  // how many operations all blocks have done
  };

  // A block's way through its tiles of a product, stage by stage.
  struct Walk {
    int tile = -1, stage = 0, end = 0;
    int unit = 0, last = -1;

    __device__ void start(const Operation& op) {
      const int stages = op.size / kWideStage;
      tile = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x);
      unit = 0, last = -1;
      if (op.num_slots > 0) {
        unit = Results::first_unit(op, blockIdx.x);
        last = Results::first_unit(op, blockIdx.x + 1);
      }
      next_tile(op.num_tiles, stages);
    }
    __device__ bool done() const { return tile < 0; }
    __device__ void next_tile(int num_tiles, int num_stages) {
      const int blocks = gridDim.x;
      if (last < 0 && tile + blocks < num_tiles) {
        tile += blocks, stage = 0, end = num_stages;
      } else if (unit < last) {
        tile = unit / num_stages;
        stage = unit - tile * num_stages;
        end = min(num_stages, stage + last - unit);
        unit += end - stage;
      } else {
        tile = -1;
      }
    }
    __device__ void next_tile(const Operation& op) {
      next_tile(op.num_tiles, op.size / kWideStage);
    }
  };

  // The weights on their way, across products.
  struct Stream {
    Walk walk;
    typename Matmul::Sources from;
    int operation = 0;  // the embedding, which has none
    int slot = 0;
    int outstanding = 0;  // stages on their way or not yet multiplied with

    __device__ void start_tile(const Operation& op) {
      if (walk.done()) return;
      const bool gated = op.kind == kStepGated;
      int first;
      const int index = Results::find(op, walk.tile, first);
      from.start(op.matrices[index],
                 op.matrices[gated ? 1 : index],
                 gated,
                 first,
                 op.size);
    }

    // Starts another stage, of products before `limit`, where there is room.
    __device__ void next(Shared& shared, int limit) {
      while (walk.done()) {
        if (operation + 1 >= limit) return;
        const Operation& op = shared.records[++operation % kRecords];
        walk.start(op);
        start_tile(op);
      }
      from.copy(shared.stages[slot], walk.stage);
      copies_commit();
      if (++walk.stage == walk.end) {
        const Operation& op = shared.records[operation % kRecords];
        walk.next_tile(op);
        start_tile(op);
      }
      if (++slot == kStages) slot = 0;
      ++outstanding;
    }
    // Until the oldest is there.
    __device__ void wait() const {
      if (outstanding == kStages - 1) {
        copies_wait<kStages - 2>();
      } else {
        copies_wait<0>();
      }
    }
  };

  // Where the products are in the rings.
  struct Place {
    int stage = 0;
    u32 slabs = 0;  // that are done with, of all rounds
    __device__ u32 slab() const { return slabs % kSlabs; }
    __device__ void wait(Shared& shared) const {
      barrier_wait(&shared.full[slab()], slabs / kSlabs % 2);
    }
  };

  static __device__ void run(const Arguments& a) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlabs; ++i) {
        barrier_init(&shared.full[i], 1);
        barrier_init(&shared.free[i], kWideThreads / 128);
      }
      shared.barrier = GridBarrier(a.barrier);
      shared.ready = 0;
      int most = 0;
      for (int m = 0; m < a.num_rows; ++m) most = max(most, a.positions[m] + 1);
      shared.most_keys = most;
    }
    __syncthreads();
    if (threadIdx.x >= kWideThreads) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
      if (threadIdx.x == kWideThreads) load(a, shared);
    } else {
      compute(a, shared);
    }
  }

  // The thread that loads x. Its warpgroup leaves registers to the others.
  static __device__ void load(const Arguments& a, Shared& shared) {
    constexpr int kBytes = kSlab * 2;
    int slot = 0;
    u32 parity = 1;
    for (int i = 1; i < a.num_operations; ++i) {
      const Operation& op = a.operations[i];
      Walk walk;
      walk.start(op);
      const int num_tiles = op.num_tiles;
      const int num_stages = op.size / kWideStage;
      const T* x = op.input == kInputState ? a.state_x : a.other_x;
      while (shared.ready < i) {
      }
      __threadfence_block();
      // What other blocks wrote is read by other means than theirs.
      asm volatile("fence.proxy.async;" ::: "memory");
      for (; !walk.done(); walk.next_tile(num_tiles, num_stages)) {
        const T* from = x + static_cast<size_t>(walk.stage) * kWideStage * N;
        for (int left = (walk.end - walk.stage) * Matmul::kSlabsOfStage;
             left > 0;
             left -= kSlabParts) {
          barrier_wait(&shared.free[slot], parity);
          barrier_expect(&shared.full[slot], kBytes);
          copy_bulk(shared.x[slot], from, kBytes, &shared.full[slot]);
          from += kSlab;
          if (++slot == kSlabs) slot = 0, parity ^= 1;
        }
      }
    }
  }

  // Of attention: what one of its units is.
  struct Unit {
    int row, kv_head, share;
    StepKeys<T> cache;
  };
  static __device__ Unit place_of(const Arguments& a,
                                  const Operation& op,
                                  int unit,
                                  int shares) {
    Unit u;
    u.share = unit % shares;
    u.kv_head = unit / shares % a.num_kv_heads;
    u.row = unit / shares / a.num_kv_heads;
    const auto* table = a.tables + u.row * (2 * a.num_layers + 1);
    u.cache = {reinterpret_cast<T*>(table[2 * op.layer]),
               reinterpret_cast<T*>(table[2 * op.layer + 1]),
               static_cast<long long>(table[2 * a.num_layers])};
    return u;
  }

  // All computing threads of all blocks, which do `meanwhile` before they wait.
  template <class Work>
  static __device__ void grid_sync(Shared& shared, const Work& meanwhile) {
    asm volatile("fence.proxy.async;" ::: "memory");
    wide_sync();
    if (threadIdx.x == 0) shared.barrier.arrive();
    meanwhile();
    if (threadIdx.x == 0) shared.barrier.wait_for_all();
    wide_sync();
  }
  static __device__ void grid_sync(Shared& shared) {
    grid_sync(shared, [] {});
  }

  static __device__ void compute(const Arguments& a, Shared& shared) {
    // 96 are a thread's at the start.
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
    constexpr int kWords = sizeof(Operation) / 16;
    const auto* records = reinterpret_cast<const uint4*>(a.operations);
    if (threadIdx.x < kAhead * kWords) {
      reinterpret_cast<uint4*>(shared.records)[threadIdx.x] =
          records[threadIdx.x];
    }
    wide_sync();
    Stream stream;
    Place place;
    for (int i = 0; i < a.num_operations; ++i) {
      const int limit = min(i + kAhead, a.num_operations);
      while (stream.outstanding < kStages - 1) {
        const int before = stream.outstanding;
        stream.next(shared, limit);
        if (stream.outstanding == before) break;
      }
      const Operation& op = shared.records[i % kRecords];
      if (i == 0) {
        embed(a, op, shared);
      } else {
        multiply(a, op, shared, stream, place, limit);
      }
      if (op.output == kOutputHeads) attend(a, op, shared);
      if (i + 1 == a.num_operations) break;
      grid_sync(shared, [&] {
        // The record that the stream may go on to.
        const int thread = threadIdx.x;
        if (limit == a.num_operations || thread >= kWords) return;
        reinterpret_cast<uint4*>(&shared.records[limit % kRecords])[thread] =
            records[static_cast<size_t>(limit) * kWords + thread];
      });
      if (threadIdx.x == 0) shared.ready = i + 1;
    }
  }

  // The state's first value, and the angles of all rows.
  static __device__ void embed(const Arguments& a,
                               const Operation& op,
                               Shared& shared) {
    auto* angles = reinterpret_cast<typename Attention::Angles*>(a.angles);
    for (int m = blockIdx.x; m < a.num_rows; m += gridDim.x) {
      Attention::take_angles(a.frequencies, a.positions[m], angles[m]);
    }
    Results::each_unit(a, op.size / Results::kOutputs, [&](int tile, int j) {
      Results::embed(a, op, tile, j, shared.results);
      wide_sync();
    });
  }

  static __device__ void multiply(const Arguments& a,
                                  const Operation& op,
                                  Shared& shared,
                                  Stream& stream,
                                  Place& place,
                                  int limit) {
    Results::take_factors(a, op, shared.results);
    wide_sync();
    Walk walk;
    int part = 0;
    for (walk.start(op); !walk.done(); walk.next_tile(op)) {
      float sums[Matmul::kSums];
      products(shared, stream, place, walk, limit, sums);
      if (op.num_slots > 0) {
        Results::leave(a, op, part++, sums);
      } else {
        Results::use_whole(a, op, walk.tile, sums, shared.results);
      }
    }
    if (op.num_slots == 0) return;
    join(a, op, shared);
  }

  // Adds up what blocks left of a product.
  static __device__ void join(const Arguments& a,
                              const Operation& op,
                              Shared& shared) {
    const int eights = (a.num_rows + 7) / 8;
    const int units = op.num_tiles * eights;
    int unit = blockIdx.x;
    typename Results::Joined joined;
    grid_sync(shared, [&] {
      if (unit < units) joined.begin(a, op, unit / eights, unit % eights);
    });
    while (unit < units) {
      joined.finish(a, op, shared.results);
      unit += gridDim.x;
      if (unit >= units) break;
      joined.begin(a, op, unit / eights, unit % eights);
      wide_sync();
    }
  }

  // The products of a part of a tile.
  static __device__ void products(Shared& shared,
                                  Stream& stream,
                                  Place& place,
                                  const Walk& walk,
                                  int limit,
                                  float (&sums)[Matmul::kSums]) {
    u32 a[4][4];
    typename Matmul::Chunk chunk;
    u32 x;
#pragma unroll
    for (int i = 0; i < Matmul::kSums; ++i) sums[i] = 0;
    for (int at = walk.stage; at < walk.end; ++at) {
      stream.wait();
      __syncwarp();
      stream.next(shared, limit);
      const auto& stage = shared.stages[place.stage];
      if (++place.stage == kStages) place.stage = 0;
#pragma unroll
      for (int i = 0; i < Matmul::kSlabsOfStage; ++i) {
        constexpr int kPartsOfChunk = Columns::kBlock / kWideSlab;
        if (i % kPartsOfChunk == 0) chunk.load(stage, i / kPartsOfChunk);
        // Other warpgroups multiply while this one expands.
        wgmma_wait<0>();
        if (i % kSlabParts == 0 && (i > 0 || at > walk.stage)) {
          free_slab(shared, place);
        }
        chunk.expand(i % kPartsOfChunk, a);
        if (i % kSlabParts == 0) {
          place.wait(shared);
          x = wgmma_matrix(shared.x[place.slab()]);
        }
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          constexpr int kStep = 16 * N * 2 / 16;
          Wgmma<T, N>::run(sums, a[s], x + (i % kSlabParts * 4 + s) * kStep);
        }
        wgmma_commit();
        if ((i + 1) % kSlabParts == 0) ++place.slabs;
      }
      --stream.outstanding;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < Matmul::kSums; ++i) {
      asm volatile("" : "+f"(sums[i])::"memory");
    }
    free_slab(shared, place);
  }

  // Says that this warpgroup has multiplied with the slab before this place.
  static __device__ void free_slab(Shared& shared, const Place& place) {
    if (threadIdx.x % 128 == 0) {
      barrier_arrive(&shared.free[(place.slabs - 1) % kSlabs]);
    }
  }

  // Into how many shares each row's keys are split.
  static __device__ int num_shares(const Arguments& a,
                                   const Operation& op,
                                   const Shared& shared) {
    constexpr int kKeysPerShare = 512;
    int keys = shared.most_keys;
    if (op.window > 0) keys = min(keys, op.window);
    return min(a.most_shares, (keys + kKeysPerShare - 1) / kKeysPerShare);
  }

  // Attention of all rows, whose heads are there once all blocks come here. A
  // team takes a share of a key head.
  static __device__ void attend(const Arguments& a,
                                const Operation& op,
                                Shared& shared) {
    grid_sync(shared);
    const int team = threadIdx.x / kStepThreads;
    const int shares = num_shares(a, op, shared);
    const int width = (a.num_heads + 2 * a.num_kv_heads) * D;
    const auto* angles =
        reinterpret_cast<const typename Attention::Angles*>(a.angles);
    const int units = a.num_rows * a.num_kv_heads * shares;
    for (int unit = team * gridDim.x + blockIdx.x; unit < units;
         unit += kTeams * gridDim.x) {
      const auto place = place_of(a, op, unit, shares);
      const int m = place.row;
      T* answers =
          a.answers + static_cast<size_t>(m) * a.num_heads * shares * (D + 8);
      Attention::share(
          op,
          {a.heads + static_cast<size_t>(m) * width,
           place.cache,
           angles[m],
           a.num_heads,
           a.num_kv_heads,
           a.positions[m]},
          place.kv_head,
          place.share,
          shares,
          shared.attention[team],
          shared.parts[team],
          [&](int head, int d, float answer, float weight) {
            if (shares > 1) {
              Attention::store_answer(
                  answers, head * shares + place.share, d, answer, weight);
              return;
            }
            if (op.sinks != nullptr) {
              answer /= 1 + exp2f(op.sinks[head] * kStepLog2e - weight);
            }
            Results::put_one(a.other_x, head * D + d, m, answer);
          });
    }
    if (shares == 1) return;
    grid_sync(shared);
    Results::combine(a, op, shares);
  }
};

}  // namespace mlxlm
