// A whole decoding step as one kernel: one block on each processor runs the
// operations of a program one after the other. Between operations all blocks
// wait for each other, but not the weights, which stream in all the time.
// (Over 500 lines, as one class: what its warps do shares all its parameters.)
#pragma once

#include "step_attention.cuh"
#include "step_experts.cuh"
#include "step_ranks.cuh"

namespace mlxlm {

// What a step works on. M: rows, each one token of a sequence of its own.
template <class T, int RANKS = 1>
struct StepArguments {
  const StepOperation<T>* operations;
  int num_operations;
  const StepKeys<T>* caches;  // [layers, M]
  const int* tokens;          // [M]
  const int* positions;       // [M]
  int num_heads;
  int num_kv_heads;
  int size;         // of the state
  int hidden_size;  // of the MLP
  int vocabulary_size;
  float* logits;  // [M, V]; of several ranks' parts: [ranks, V]
  unsigned long long* barrier;
  const float* frequencies;  // of the rope: [rotated / 2]
  float* state;              // [M, size]
  float* heads;              // [M, (H + 2 Hkv) D]
  T* answers;                // of attention: [M, H, shares, D + 8]
  T* hidden;                 // [M, hidden_size]
  StepMail<RANKS> mail;
#ifdef MLXLM_STEP_TRACE
  long long* trace;  // [blocks][operations][4]: nanoseconds
#endif
};

#ifdef MLXLM_STEP_TRACE
#define MLXLM_TRACE(i, what) trace(a, i, what)
template <class Arguments>
__device__ void trace(const Arguments& a, int i, int what) {
  if (threadIdx.x != 0) return;
  long long now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  a.trace[(static_cast<size_t>(blockIdx.x) * a.num_operations + i) * 4 + what] =
      now;
}
#else
#define MLXLM_TRACE(i, what)
#endif

template <class T,
          int BITS,
          int GROUP,
          bool FLOATS,
          int M,
          int D,
          int ROTATED,
          bool TRADITIONAL,
          int QUERIES,
          int COUNT,
          int MAX_SIZE,
          bool EXPERTS,
          int RANKS = 1>
struct Step {
  static_assert(M == 1 || (!EXPERTS && RANKS == 1));
  using Arguments = StepArguments<T, RANKS>;
  using Linear = StepLinear<T, BITS, GROUP, FLOATS, M, EXPERTS>;
  using Input = StagedInput<T, BITS, GROUP, FLOATS>;
  using Attention = StepAttention<T, D, ROTATED, TRADITIONAL, QUERIES>;
  using Router = StepRouter<T, Input>;
  using Operation = StepOperation<T>;
  using Ring = StreamRing<typename Linear::Stage, COUNT>;
  static constexpr int kX = M * MAX_SIZE / 2 * Input::kPartBytes;  // words
  static constexpr int kParts = kStepWarps * QUERIES * D;

  struct Shared {
    Ring ring;
    Operation computed[2];  // of the computing warps, the second being fetched
    Operation loaded[2];    // of the loading warp
    typename Linear::Partials partials;
    float2 groups[M * MAX_SIZE / GROUP];
    float square[M * kStepWarps];
    typename Router::Shared router;
    typename Attention::Shared attention;
    typename Attention::Angles angles[M];
    alignas(16) u32 x[kX > kParts ? kX : kParts];  // also attention's parts
  };

  static __device__ void run(const Arguments& a) {
    // Copies of memory's sectors are slower where they fall on two of them.
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
      for (int i = 0; i < COUNT; ++i) {
        barrier_init(&shared.ring.full[i], kLoadThreads);
        barrier_init(&shared.ring.free[i], kStepWarps);
      }
      for (int i = 0; i < 2; ++i) {
        barrier_init(&shared.partials.full[i], kStepWarps);
        barrier_init(&shared.partials.free[i], 1);
      }
      barrier_init(&shared.router.chosen, 1);
    }
    __syncthreads();
    if (threadIdx.x < kStepThreads) {
      compute(a, shared);
    } else if (threadIdx.x < kStepThreads + kResultThreads) {
      finish(a, shared);
    } else {
      load(a, shared);
    }
  }

  static __device__ bool has_weights(const Operation& op) {
    return op.kind == kStepLinear || op.kind == kStepGated;
  }

  static __device__ void load(const Arguments& a, Shared& shared) {
    const int thread = threadIdx.x - kStepThreads - kResultThreads;
    RingPlace place;
    RingPlace choice;
    Fetch<Operation> next;
    next.start(a.operations, thread);
    next.finish(&shared.loaded[0], thread);
    load_sync();
    for (int i = 0; i < a.num_operations; ++i) {
      next.start(a.operations + min(i + 1, a.num_operations - 1), thread);
      const Operation& op = shared.loaded[i % 2];
      prepare(a, op, thread);
      if (EXPERTS && op.kind == kStepGated && op.num_chosen > 0) {
        barrier_wait(&shared.router.chosen, choice.parity);
        choice.advance<1>();
      }
      if (has_weights(op)) {
        Linear::Sources::template stream<Ring, COUNT>(
            op, shared.router.choice, shared.ring, place);
      }
      next.finish(&shared.loaded[(i + 1) % 2], thread);
      load_sync();
    }
  }

  // Brings what the computing warps will read of an operation, beside weights,
  // into the second cache level.
  static __device__ void prepare(const Arguments& a,
                                 const Operation& op,
                                 int thread) {
    if (op.kind == kStepAttention) {
      each_share(a, op, [&](int m, int kv_head, int share, int shares) {
        Attention::prefetch(op,
                            a.caches[op.layer * M + m],
                            a.positions[m],
                            kv_head,
                            share,
                            shares,
                            thread);
      });
      return;
    }
    if (EXPERTS && op.kind == kStepRoute) Router::prefetch(op, thread);
    if (op.norm != nullptr && blockIdx.x == op.first_block) {
      for (int at = thread * 64; at < op.size; at += kLoadThreads * 64) {
        prefetch(op.norm + at);
      }
    }
  }

  static __device__ void compute(const Arguments& a, Shared& shared) {
    RingPlace place;
    RingPlace turn;
    Fetch<Operation> next;
    next.start(a.operations, threadIdx.x);
    next.finish(&shared.computed[0], threadIdx.x);
    for (int m = 0; m < M; ++m) {
      Attention::take_angles(a.frequencies, a.positions[m], shared.angles[m]);
    }
    operation_sync();
    for (int i = 0; i < a.num_operations; ++i) {
      next.start(a.operations + min(i + 1, a.num_operations - 1), threadIdx.x);
      const Operation& op = shared.computed[i % 2];
      MLXLM_TRACE(i, 0);
      const typename Input::Rows rows{
          reinterpret_cast<unsigned char*>(shared.x),
          shared.groups,
          shared.square,
          op.size / GROUP};
      if (has_weights(op)) {
        take_input(a, op, shared.router.choice, rows);
        MLXLM_TRACE(i, 1);
        Linear::template run<COUNT>(
            op, rows, shared.ring, place, shared.partials, turn);
      } else {
        if (op.kind == kStepAttention) {
          attend(a, op, shared);
        } else if (EXPERTS && op.kind == kStepRoute) {
          // Logits lie where attention's heads were.
          Router::route(op, a.state, a.heads, shared.router);
        } else {
          embed(a, op);
        }
        operation_sync();
        MLXLM_TRACE(i, 1);
        if (EXPERTS && op.kind == kStepRoute) {
          // What follows keeps it. The other warp waits for other blocks.
          take_input(a, op, shared.router.choice, rows);
        }
      }
      next.finish(&shared.computed[(i + 1) % 2], threadIdx.x);
      MLXLM_TRACE(i, 2);
      operation_sync();
      MLXLM_TRACE(i, 3);
    }
  }

  // The warp that finishes results, and waits for the other blocks.
  static __device__ void finish(const Arguments& a, Shared& shared) {
    RingPlace turn;
    GridBarrier barrier(a.barrier);
    // No two operations that others wait for have the same, in all steps.
    const u32 first_stamp = static_cast<u32>(barrier.target / gridDim.x);
    operation_sync();
    for (int i = 0; i < a.num_operations; ++i) {
      const Operation& op = shared.computed[i % 2];
      if (has_weights(op)) {
        finish_results(a, op, shared, turn, first_stamp + i);
        __syncwarp();
      } else {
        operation_sync();
      }
      if (threadIdx.x % 32 == 0 && i + 1 < a.num_operations) {
        barrier.wait();
      }
      __syncwarp();
      if (EXPERTS && op.kind == kStepRoute) {
        Router::choose(op, a.heads, shared.router);
      }
      operation_sync();
    }
  }

  // The state's first value: rows of the table.
  static __device__ void embed(const Arguments& a, const Operation& op) {
    const auto& table = op.matrices[0];
    const int step = gridDim.x * kStepThreads;
    for (int i = blockIdx.x * kStepThreads + threadIdx.x; i < M * op.size;
         i += step) {
      const size_t row = a.tokens[i / op.size];
      const float value = number_of(table, row, op.size, i % op.size);
      // Rounded as the plain operation rounds.
      a.state[i] = to_float(from_float<T>(value * op.scale));
    }
  }

  static __device__ float number_of(const StepMatrix<T>& table,
                                    size_t row,
                                    int size,
                                    int k) {
    const u32 word = table.words[row * (size * BITS / 32) + k * BITS / 32];
    const u32 q = word >> (k * BITS % 32) & ((1u << BITS) - 1);
    if constexpr (BITS == 16) {
      return to_float(T{static_cast<unsigned short>(q)});
    }
    const size_t group = row * (size / GROUP) + k / GROUP;
    if constexpr (FLOATS) {
      const u32 byte =
          reinterpret_cast<const unsigned char*>(table.scales)[group];
      return Pair<T>::floats(Pair<T>::of_fp4(q)).x * Linear::scale_of(byte);
    } else {
      return to_float(from_float<T>(to_float(table.scales[group]) * q +
                                    to_float(table.zeros[group])));
    }
  }

  // Into how many shares the keys of row m are split.
  static __device__ int num_shares(const Arguments& a, int window, int m) {
    constexpr int kKeysPerShare = kStepWarps * Attention::kTileKeys;
    const int most = max(static_cast<int>(gridDim.x) / (M * a.num_kv_heads), 1);
    int keys = a.positions[m] + 1;
    if (window > 0) keys = min(keys, window);
    return min(most, (keys + kKeysPerShare - 1) / kKeysPerShare);
  }

  // Where the answers of row m begin, in heads: rows have the most room.
  static __device__ size_t answers_of(const Arguments& a, int m) {
    const int most = max(static_cast<int>(gridDim.x) / (M * a.num_kv_heads), 1);
    return static_cast<size_t>(m) * a.num_heads * most;
  }

  // Calls use(row, key head, share, number of shares) for what this block has
  // of an attention.
  template <class Use>
  static __device__ void each_share(const Arguments& a,
                                    const Operation& op,
                                    const Use& use) {
    int unit = blockIdx.x;
    for (int m = 0; m < M; ++m) {
      const int shares = num_shares(a, op.window, m);
      const int count = shares * a.num_kv_heads;
      for (; unit < count; unit += gridDim.x) {
        use(m, unit / shares, unit % shares, shares);
      }
      unit -= count;
    }
  }

  static __device__ void attend(const Arguments& a,
                                const Operation& op,
                                Shared& shared) {
    const int width = (a.num_heads + 2 * a.num_kv_heads) * D;
    each_share(a, op, [&](int m, int kv_head, int share, int shares) {
      T* answers = a.answers + answers_of(a, m) * (D + 8);
      Attention::share(op,
                       {a.heads + static_cast<size_t>(m) * width,
                        a.caches[op.layer * M + m],
                        shared.angles[m],
                        a.num_heads,
                        a.num_kv_heads,
                        a.positions[m]},
                       kv_head,
                       share,
                       shares,
                       shared.attention,
                       reinterpret_cast<float*>(shared.x),
                       [&](int head, int d, float answer, float weight) {
                         Attention::store_answer(
                             answers, head * shares + share, d, answer, weight);
                       });
    });
  }

  static __device__ void take_input(const Arguments& a,
                                    const Operation& op,
                                    const StepChoice& choice,
                                    const typename Input::Rows& rows) {
    if (EXPERTS && op.input == kInputKept) return;
    for (int m = 0; m < M; ++m) {
      const size_t at = static_cast<size_t>(m) * op.size;
      if (op.input == kInputState) {
        const typename Input::State state{a.state + at, op.norm};
        Input::template take_row<2>(state, op.size, m, rows);
      } else if (EXPERTS && op.num_chosen > 0) {
        const typename Input::Chosen chosen{
            {a.hidden + at}, choice, op.expert_size};
        Input::template take_row<4>(chosen, op.size, m, rows);
      } else if (op.input == kInputHidden) {
        const typename Input::Hidden hidden{a.hidden + at};
        Input::template take_row<7>(hidden, op.size, m, rows);
      } else {
        const typename Input::template Shares<D> shares{
            a.answers + answers_of(a, m) * (D + 8),
            op.sinks,
            num_shares(a, op.window, m)};
        Input::template take_row<2>(shares, op.size, m, rows);
      }
    }
    step_sync();
  }

  static __device__ float silu(float x) { return x / (1 + __expf(-x)); }

  // See StepLinear::results().
  template <class Prepare, class Use>
  static __device__ void each_result(const Operation& op,
                                     Shared& shared,
                                     RingPlace& turn,
                                     const Prepare& prepare,
                                     const Use& use) {
    Linear::results(op, shared.square, shared.partials, turn, prepare, use);
  }

  static __device__ void finish_results(const Arguments& a,
                                        const Operation& op,
                                        Shared& shared,
                                        RingPlace& turn,
                                        u32 stamp) {
    if (RANKS > 1 && is_shared(a, op)) {
      finish_shared(a, op, shared, turn, stamp);
      return;
    }
    if (op.kind == kStepGated) {
      auto use = [&](int tile, int m, float gate, float up) {
        finish_gated(a, op, tile, m, gate, up);
      };
      each_result(
          op, shared, turn, [](int) {}, use);
      return;
    }
    float state[M];  // that results are added to
    const bool adds = op.output == kOutputState;
    auto place_of = [&](int tile, int& n) {
      int first_row;
      const auto& matrix = Linear::Sources::find(op, tile, first_row);
      n = first_row + threadIdx.x % 16;
      return &matrix;
    };
    each_result(
        op,
        shared,
        turn,
        [&](int tile) {
          if (!adds) return;
          int n;
          const auto* matrix = place_of(tile, n);
          n = min(n, matrix->num_rows - 1) + matrix->first_output;
#pragma unroll
          for (int m = 0; m < M; ++m) {
            state[m] = __ldcg(a.state + static_cast<size_t>(m) * a.size + n);
          }
        },
        [&](int tile, int m, float value, float) {
          int n;
          const auto* matrix = place_of(tile, n);
          if (threadIdx.x % 32 >= 16 || n >= matrix->num_rows) return;
          if (matrix->bias != nullptr) value += to_float(matrix->bias[n]);
          n += matrix->first_output;
          if (adds) {
            float before = 0;
#pragma unroll
            for (int i = 0; i < M; ++i) {
              if (i == m) before = state[i];
            }
            a.state[static_cast<size_t>(m) * a.size + n] =
                before + op.scale * value;
          } else if (op.output == kOutputHeads) {
            const int width = (a.num_heads + 2 * a.num_kv_heads) * D;
            a.heads[static_cast<size_t>(m) * width + n] = value;
          } else {
            a.logits[static_cast<size_t>(m) * a.vocabulary_size + n] = value;
          }
        });
  }

  // Whether other ranks have the other parts of the results.
  static __device__ bool is_shared(const Arguments& a, const Operation& op) {
    return op.output == kOutputState ||
           (op.output == kOutputLogits && a.mail.splits_head);
  }

  // The ranks' parts of the state are added up, in the same order at each, and
  // those of the logits put side by side.
  static __device__ void finish_shared(const Arguments& a,
                                       const Operation& op,
                                       Shared& shared,
                                       RingPlace& turn,
                                       u32 stamp) {
    const auto& matrix = op.matrices[0];
    const bool adds = op.output == kOutputState;
    const size_t width = adds ? a.size : a.vocabulary_size;
    const int box = adds ? (op.input == kInputHidden ? 1 : 0) : 2;
    const size_t base = static_cast<size_t>(box) * RANKS * a.size;
    auto row_of = [](int tile) { return tile * 16 + threadIdx.x % 16; };
    auto send = [&](int tile, int, float value, float) {
      const int n = row_of(tile);
      if (threadIdx.x % 32 >= 16 || n >= matrix.num_rows) return;
      if (matrix.bias != nullptr) value += to_float(matrix.bias[n]);
      a.mail.send(base + a.mail.rank * width + n, value, stamp);
    };
    each_result(
        op, shared, turn, [](int) {}, send);
    constexpr int kAtATime = 4;  // of a lane; each half of the warp has a tile
    const int step = 2 * gridDim.x;
    const int half = threadIdx.x % 32 / 16;
    for (int v = Linear::Sources::first_visit(op) + half * gridDim.x;
         v < op.num_tiles;
         v += kAtATime * step) {
      Word words[kAtATime][RANKS];
      float before[kAtATime];
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) {
        const int n = min(row_of(v + i * step), matrix.num_rows - 1);
#pragma unroll
        for (int r = 0; r < RANKS; ++r) {
          words[i][r] = a.mail.read(base + r * width + n);
        }
        if (adds) before[i] = __ldcg(a.state + n);
      }
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) {
        const int n = row_of(v + i * step);
        if (n >= matrix.num_rows) continue;
        float sum = 0;
#pragma unroll
        for (int r = 0; r < RANKS; ++r) {
          const size_t at = r * width + n;
          const float value = a.mail.wait(base + at, words[i][r], stamp);
          sum += value;
          if (!adds) a.logits[at] = value;
        }
        if (adds) a.state[n] = before[i] + op.scale * sum;
      }
    }
  }

  static __device__ void finish_gated(const Arguments& a,
                                      const Operation& op,
                                      int tile,
                                      int m,
                                      float gate,
                                      float up) {
    const int n = tile * 16 + threadIdx.x % 16;
    const auto& matrix = op.matrices[0];
    if (threadIdx.x % 32 >= 16 || n >= matrix.num_rows) return;
    if (matrix.bias != nullptr) {
      gate += to_float(matrix.bias[n]);
      up += to_float(op.matrices[1].bias[n]);
    }
    a.hidden[static_cast<size_t>(m) * a.hidden_size + n] =
        from_float<T>(silu(gate) * up);
  }
};

}  // namespace mlxlm
