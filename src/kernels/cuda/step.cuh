// A whole decoding step as one kernel: one block on each processor runs the
// operations of a program one after the other. Between operations all blocks
// wait for each other, but not the weights, which stream in all the time.
#pragma once

#include "step_attention.cuh"
#include "step_experts.cuh"
#include "step_results.cuh"

namespace mlxlm {

// How many of a thread's reads wait together, as a type.
template <int COUNT>
struct AtATime {
  static constexpr int kCount = COUNT;
};

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
  static_assert(M == 1 || RANKS == 1);
  using Arguments = StepArguments<T, M, RANKS>;
  using Linear = StepLinear<T, BITS, GROUP, FLOATS, M, EXPERTS>;
  using Input = StagedInput<T, BITS, GROUP, FLOATS>;
  using Attention = StepAttention<T, D, ROTATED, TRADITIONAL, QUERIES>;
  // Of experts, whose tiles are of one row each.
  using OneRow = StepLinear<T, BITS, GROUP, FLOATS, 1, EXPERTS>;
  using Results = StepResults<T, M, D, RANKS, Linear, OneRow>;
  using Router = StepRouter<T, Input, M>;
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
      barrier_init(&shared.router.chosen, a.rows());
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
            op, a.rows(), shared.router.choices, shared.ring, place);
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
    for (int m = 0; m < a.rows(); ++m) {
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
        take_input(a, op, shared.router.choices, rows);
        MLXLM_TRACE(i, 1);
        multiply(a, op, rows, shared, place, turn);
      } else {
        if (op.kind == kStepAttention) {
          attend(a, op, shared);
        } else if (EXPERTS && op.kind == kStepRoute) {
          // Logits lie where attention's heads were.
          Router::route(
              op, a.rows(), a.state, a.heads, heads_width(a), shared.router);
        } else {
          embed(a, op);
        }
        operation_sync();
        MLXLM_TRACE(i, 1);
        if (EXPERTS && op.kind == kStepRoute) {
          // What follows keeps it. The other warp waits for other blocks.
          take_input(a, op, shared.router.choices, rows);
        }
      }
      next.finish(&shared.computed[(i + 1) % 2], threadIdx.x);
      MLXLM_TRACE(i, 2);
      operation_sync();
      MLXLM_TRACE(i, 3);
      if (EXPERTS && op.kind == kStepRoute) choose(a, op, shared);
    }
  }

  // Each of the first warps chooses a row's experts.
  static __device__ void choose(const Arguments& a,
                                const Operation& op,
                                Shared& shared) {
    static_assert(M <= kStepWarps);
    const int m = threadIdx.x / 32;
    if (m >= a.rows()) return;
    Router::choose(op,
                   a.heads + static_cast<size_t>(m) * heads_width(a),
                   shared.router.choices[m],
                   shared.router);
  }

  static __device__ int heads_width(const Arguments& a) {
    return (a.num_heads + 2 * a.num_kv_heads) * D;
  }

  static __device__ void multiply(const Arguments& a,
                                  const Operation& op,
                                  const typename Input::Rows& rows,
                                  Shared& shared,
                                  RingPlace& place,
                                  RingPlace& turn) {
    const int visits = Linear::Sources::num_visits(op, a.rows());
    if (M > 1 && Linear::Sources::row_by_row(op)) {
      auto one_of = [&](int visit) { return row_of(rows, op, visit); };
      OneRow::template run<COUNT>(
          op, visits, one_of, shared.ring, place, shared.partials, turn);
    } else {
      auto all_of = [&](int) { return rows; };
      Linear::template run<COUNT>(
          op, visits, all_of, shared.ring, place, shared.partials, turn);
    }
  }

  // The row that a visit is for, of experts.
  static __device__ typename Input::Rows row_of(
      const typename Input::Rows& rows, const Operation& op, int visit) {
    const int m = visit / op.num_tiles;
    const int groups = m * rows.num_groups;
    return {rows.x + groups * (2 * GROUP * Input::kPartBytes),
            rows.groups + groups,
            rows.square + m * kStepWarps,
            rows.num_groups};
  }

  // The warp that finishes results, and waits for the other blocks.
  static __device__ void finish(const Arguments& a, Shared& shared) {
    RingPlace turn;
    const typename Results::Tiles tiles{shared.square, shared.partials, turn};
    GridBarrier barrier(a.barrier);
    // No two operations that others wait for have the same, in all steps.
    const u32 first_stamp = static_cast<u32>(barrier.target / gridDim.x);
    operation_sync();
    for (int i = 0; i < a.num_operations; ++i) {
      const Operation& op = shared.computed[i % 2];
      if (has_weights(op)) {
        Results::finish(a, op, tiles, first_stamp + i);
        __syncwarp();
      } else {
        operation_sync();
      }
      if (threadIdx.x % 32 == 0 && i + 1 < a.num_operations) {
        barrier.wait();
      }
      __syncwarp();
      operation_sync();
    }
  }

  // The state's first value: rows of the table.
  static __device__ void embed(const Arguments& a, const Operation& op) {
    const auto& table = op.matrices[0];
    const int step = gridDim.x * kStepThreads;
    const int end = a.rows() * op.size;
    for (int i = blockIdx.x * kStepThreads + threadIdx.x; i < end; i += step) {
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

  static __device__ int most_shares(const Arguments& a) {
    return max(static_cast<int>(gridDim.x) / (a.rows() * a.num_kv_heads), 1);
  }

  // Into how many shares the keys of row m are split.
  static __device__ int num_shares(const Arguments& a, int window, int m) {
    constexpr int kKeysPerShare = kStepWarps * Attention::kTileKeys;
    const int most = most_shares(a);
    int keys = a.positions[m] + 1;
    if (window > 0) keys = min(keys, window);
    return min(most, (keys + kKeysPerShare - 1) / kKeysPerShare);
  }

  // Where the answers of row m begin, in heads: rows have the most room.
  static __device__ size_t answers_of(const Arguments& a, int m) {
    return static_cast<size_t>(m) * a.num_heads * most_shares(a);
  }

  // Calls use(row, key head, share, number of shares) for what this block has
  // of an attention.
  template <class Use>
  static __device__ void each_share(const Arguments& a,
                                    const Operation& op,
                                    const Use& use) {
    int unit = blockIdx.x;
    for (int m = 0; m < a.rows(); ++m) {
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
    const int width = heads_width(a);
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
                                    const StepChoice* choices,
                                    const typename Input::Rows& rows) {
    if (EXPERTS && op.input == kInputKept) return;
    constexpr int kFew = M == 1 ? 2 : 4;
    auto take = [&](auto at_a_time, const auto& source_of) {
      constexpr int kCount = decltype(at_a_time)::kCount;
      if constexpr (M == 1) {
        Input::template take_row<kCount>(source_of(0), op.size, rows);
      } else {
        Input::template take_rows<kCount>(source_of, a.rows(), op.size, rows);
      }
    };
    auto hidden_of = [&](int m) {
      return typename Input::Hidden{a.hidden +
                                    static_cast<size_t>(m) * a.hidden_size};
    };
    if (op.input == kInputState) {
      take(AtATime<kFew>(), [&](int m) {
        return typename Input::State{a.state + static_cast<size_t>(m) * op.size,
                                     op.norm};
      });
    } else if (EXPERTS && op.num_chosen > 0) {
      take(AtATime<4>(), [&](int m) {
        return typename Input::Chosen{hidden_of(m), choices[m], op.expert_size};
      });
    } else if (op.input == kInputHidden) {
      take(AtATime<7>(), hidden_of);
    } else {
      take(AtATime<2>(), [&](int m) {
        return typename Input::template Shares<D>{
            a.answers + answers_of(a, m) * (D + 8),
            op.sinks,
            num_shares(a, op.window, m)};
      });
    }
    step_sync();
  }
};

}  // namespace mlxlm
