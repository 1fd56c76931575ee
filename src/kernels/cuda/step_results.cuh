// What happens to a step's products: a warp of each block adds up their parts
// and writes them where the next operation reads them, for several ranks at all
// of them.
#pragma once

#include "step_arguments.cuh"
#include "step_linear.cuh"

namespace mlxlm {

// OneRow: Linear for a single row, which experts' tiles are of.
template <class T, int M, int D, int RANKS, class Linear, class OneRow>
struct StepResults {
  using Arguments = StepArguments<T, M, RANKS>;
  using Operation = StepOperation<T>;
  // Where products leave their parts, and what the norm needs.
  struct Tiles {
    const float* squares;  // [M][kStepWarps]
    typename Linear::Partials& partials;
    RingPlace& turn;
  };

  static __device__ float silu(float x) { return x / (1 + __expf(-x)); }

  // See StepLinear::results().
  template <class Prepare, class Use>
  static __device__ void each_result(const Operation& op,
                                     const Tiles& tiles,
                                     const Prepare& prepare,
                                     const Use& use) {
    auto squares_of = [&](int) { return tiles.squares; };
    Linear::results(
        op, op.num_tiles, squares_of, tiles.partials, tiles.turn, prepare, use);
  }

  static __device__ void finish(const Arguments& a,
                                const Operation& op,
                                const Tiles& tiles,
                                u32 stamp) {
    if (RANKS > 1 && is_shared(a, op)) {
      finish_shared(a, op, tiles, stamp);
      return;
    }
    if (M > 1 && Linear::Sources::row_by_row(op)) {
      finish_rows(a, op, tiles);
      return;
    }
    if (op.kind == kStepGated) {
      auto use = [&](int tile, int m, float gate, float up) {
        finish_gated(a, op, tile, m, gate, up);
      };
      each_result(
          op, tiles, [](int) {}, use);
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
        tiles,
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
          if (threadIdx.x % 32 >= 16 || n >= matrix->num_rows ||
              m >= a.rows()) {
            return;
          }
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
            a.heads[static_cast<size_t>(m) *
                        (a.num_heads + 2 * a.num_kv_heads) * D +
                    n] = value;
          } else {
            a.logits[static_cast<size_t>(m) * a.vocabulary_size + n] = value;
          }
        });
  }

  // The same of experts, where a visit is for one row.
  static __device__ void finish_rows(const Arguments& a,
                                     const Operation& op,
                                     const Tiles& tiles) {
    auto row_of = [&](int visit) { return visit / op.num_tiles; };
    auto state_of = [&](int visit) {
      const int tile = visit % op.num_tiles;
      return a.state + static_cast<size_t>(row_of(visit)) * a.size + tile * 16 +
             threadIdx.x % 16;
    };
    const bool gated = op.kind == kStepGated;
    float before = 0;
    OneRow::results(
        op,
        Linear::Sources::num_visits(op, a.rows()),
        [&](int visit) { return tiles.squares + row_of(visit) * kStepWarps; },
        tiles.partials,
        tiles.turn,
        [&](int visit) {
          if (!gated) before = __ldcg(state_of(visit));
        },
        [&](int visit, int, float value, float up) {
          if (gated) {
            finish_gated(a, op, visit % op.num_tiles, row_of(visit), value, up);
          } else if (threadIdx.x % 32 < 16) {
            *state_of(visit) = before + op.scale * value;
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
                                       const Tiles& tiles,
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
        op, tiles, [](int) {}, send);
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
    if (threadIdx.x % 32 >= 16 || n >= matrix.num_rows || m >= a.rows()) {
      return;
    }
    if (matrix.bias != nullptr) {
      gate += to_float(matrix.bias[n]);
      up += to_float(op.matrices[1].bias[n]);
    }
    a.hidden[static_cast<size_t>(m) * a.hidden_size + n] =
        from_float<T>(silu(gate) * up);
  }
};

}  // namespace mlxlm
