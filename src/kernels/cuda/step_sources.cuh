// What a step does, operation by operation, and how the loading warps bring the
// weights of a product into the ring: tiles of 16 rows, a stage after the
// other.
#pragma once

#include "step_input.cuh"

namespace mlxlm {

// One matrix [num_rows, K]. Dense ones have words alone, those of floats scales
// that are bytes.
template <class T>
struct StepMatrix {
  const u32* words;
  const T* scales;
  const T* zeros;
  const T* bias;  // or null
  int num_rows;
  int first_output;  // where its outputs begin
};

enum StepKind {
  kStepEmbed,
  kStepLinear,
  kStepGated,
  kStepAttention,
  kStepRoute
};
// Kept: what the operation before took.
enum StepInput { kInputState, kInputAttention, kInputHidden, kInputKept };
enum StepOutput { kOutputHeads, kOutputState, kOutputHidden, kOutputLogits };

// One operation of a step.
template <class T>
struct alignas(16) StepOperation {
  int kind;
  int size;  // K
  int input;
  int output;
  int num_matrices;
  int num_tiles;    // of 16 rows in all matrices; gated: of gate's
  int first_block;  // that has tile 0
  int layer;        // attention: of keys and values
  float eps;
  float scale;    // of what is added to the state; of attention's scores
  float softcap;  // of attention
  int window;     // of attention; 0: all
  // Of a choice of experts, else 0. Gated products: a matrix has the rows of
  // all experts, num_rows of them are the chosen ones'. The product that
  // follows: experts' matrices [num_rows, expert_size] lie one behind the
  // other, K is num_chosen * expert_size.
  int num_experts;
  int num_chosen;
  int expert_size;
  int normalizes;   // weights of the chosen sum to 1
  const T* norm;    // of the state before the product, or null
  const T* q_norm;  // attention, or null
  const T* k_norm;
  const float* sinks;  // of the product after attention: [H], or null
  StepMatrix<T> matrices[3];
  int num_slots;  // steps of many rows: for a block's parts of tiles; 0: whole
};

template <class T, int BITS, int GROUP, bool FLOATS, bool EXPERTS>
struct StepSources {
  using Stage = StreamStage<BITS, GROUP, FLOATS>;
  static constexpr int kScaleBytes = Stage::kScaleBytes;
  static constexpr int kKinds = Stage::kHasZeros ? 2 : 1;  // scales, zeros

  static __device__ const unsigned char* bytes_of(const void* p) {
    return static_cast<const unsigned char*>(p);
  }

  // The matrix and its row where a tile begins. Tiles of gate and up alternate.
  static __device__ const StepMatrix<T>& find(const StepOperation<T>& op,
                                              int tile,
                                              int& first_row) {
    if (op.kind == kStepGated) {
      first_row = tile / 2 * 16;
      return op.matrices[tile % 2];
    }
    int i = 0;
    first_row = tile * 16;
    while (i + 1 < op.num_matrices && first_row >= op.matrices[i].num_rows) {
      first_row -= (op.matrices[i].num_rows + 15) / 16 * 16;
      ++i;
    }
    return op.matrices[i];
  }

  static __device__ int first_visit(const StepOperation<T>& op) {
    return (blockIdx.x + gridDim.x - op.first_block) % gridDim.x;
  }

  // Whether each row of x has its own weights, those of the experts that are
  // chosen for it: all tiles of the first row come first.
  static __device__ bool row_by_row(const StepOperation<T>& op) {
    return EXPERTS && op.num_chosen > 0;
  }
  // How often blocks visit a tile, or gate's and up's, all together.
  static __device__ int num_visits(const StepOperation<T>& op, int num_rows) {
    return op.num_tiles * (row_by_row(op) ? num_rows : 1);
  }

  // The loading warps' part of an operation. Each has some rows of a stage.
  template <class Ring, int COUNT>
  static __device__ void stream(const StepOperation<T>& op,
                                int num_rows,
                                const StepChoice* choices,
                                Ring& ring,
                                RingPlace& place) {
    const int tiles = op.kind == kStepGated ? 2 : 1;
    const int row_bytes = op.size / 8 * BITS;
    auto stream_tile = [&](auto& from) {
      for (int left = row_bytes; left > 0; left -= Stage::kRowBytes) {
        barrier_wait(&ring.free[place.index], place.parity ^ 1);
        from.copy_next(ring.stages[place.index], left);
        arrive_when_copied(&ring.full[place.index]);
        end_stage();
        place.advance<COUNT>();
      }
    };
    const bool chooses = row_by_row(op);
    const int end = num_visits(op, num_rows);
    int row_begin = 0;  // the visit that is a row's first
    const StepChoice* row_choice = choices;
    for (int v = first_visit(op); v < end; v += gridDim.x) {
      for (; EXPERTS && v - row_begin >= op.num_tiles; ++row_choice) {
        row_begin += op.num_tiles;
      }
      const StepChoice& choice = *row_choice;
      for (int t = 0; t < tiles; ++t) {
        int first_row;
        const auto& matrix = find(op, (v - row_begin) * tiles + t, first_row);
        int last_row = matrix.num_rows;
        if constexpr (EXPERTS) {
          if (chooses && op.kind == kStepLinear) {
            ChosenColumns from{op, choice, first_row};
            stream_tile(from);
            continue;
          }
          if (chooses) {
            const int i = first_row / op.expert_size;
            first_row += (choice.experts[i] - i) * op.expert_size;
            last_row = first_row + 16;
          }
        }
        Rows from(matrix, first_row, last_row, row_bytes);
        stream_tile(from);
      }
    }
  }

  // What one thread copies of a tile, stage after stage.
  struct Rows {
    static constexpr int kRows = 16 / kLoadWarps;  // of a warp
    static constexpr int kScaleChunks =
        Stage::kGroups * kScaleBytes / 16;  // of 16 bytes
    static constexpr int kScaleCopies =
        kRows * kScaleChunks * kKinds;  // of a warp
    static constexpr int kOwnScales = (kScaleCopies + 31) / 32;

    const unsigned char* words[kRows];
    const unsigned char* scales[kOwnScales];  // or zeros

    __device__ Rows(const StepMatrix<T>& matrix,
                    int first_row,
                    int num_rows,
                    int row_bytes) {
      const int last = num_rows - 1;
      const int lane = threadIdx.x % 32;
      const int warp = threadIdx.x / 32 - kStepWarps - 1;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const size_t row = min(first_row + warp * kRows + i, last);
        words[i] = bytes_of(matrix.words) + row * row_bytes + lane * 16;
      }
      if constexpr (Stage::kDense) return;
      const int groups = row_bytes / Stage::kGroupBytes;
#pragma unroll
      for (int j = 0; j < kOwnScales; ++j) {
        const int i = lane + j * 32;
        const size_t row =
            min(first_row + warp * kRows + i / kScaleChunks % kRows, last);
        scales[j] =
            bytes_of(i / kScaleChunks < kRows ? matrix.scales : matrix.zeros) +
            row * groups * kScaleBytes + i % kScaleChunks * 16;
      }
    }

    __device__ void copy_next(Stage& stage, int left_bytes) {
      if (left_bytes >= Stage::kRowBytes) {
        copy<false>(stage, left_bytes);
      } else {
        copy<true>(stage, left_bytes);
      }
    }

    // PART: of the last, shorter stage of a row.
    template <bool PART>
    __device__ void copy(Stage& stage, int left_bytes) {
      const int lane = threadIdx.x % 32;
      const int warp = threadIdx.x / 32 - kStepWarps - 1;
      unsigned char* to =
          stage.words + warp * kRows * Stage::kRowStride + lane * 16;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int at = 0; at < Stage::kRowBytes; at += 512) {
          if (PART && at + lane * 16 >= left_bytes) continue;
          copy_in(to + i * Stage::kRowStride + at, words[i] + at);
        }
        words[i] += Stage::kRowBytes;
      }
      if constexpr (!Stage::kDense) copy_scales<PART>(stage, left_bytes);
    }

    template <bool PART>
    __device__ void copy_scales(Stage& stage, int left_bytes) {
      const int lane = threadIdx.x % 32;
      const int warp = threadIdx.x / 32 - kStepWarps - 1;
#pragma unroll
      for (int j = 0; j < kOwnScales; ++j) {
        const int i = lane + j * 32;
        const int at = i % kScaleChunks;
        const int row = warp * kRows + i / kScaleChunks % kRows;
        unsigned char* first =
            i / kScaleChunks < kRows ? stage.scales : stage.zeros;
        const bool skip =
            (kScaleCopies % 32 != 0 && i >= kScaleCopies) ||
            (PART &&
             at * (16 / kScaleBytes) * Stage::kGroupBytes >= left_bytes);
        if (!skip) {
          copy_in(first + row * Stage::kScaleStride + at * 16, scales[j]);
        }
        scales[j] += Stage::kGroups * kScaleBytes;
      }
    }
  };

  // The same of a product whose columns are those of the chosen experts.
  struct ChosenColumns {
    static constexpr int kRows = 16 / kLoadWarps;
    static constexpr int kChunkGroups = 8 / kScaleBytes;  // scales, 8 bytes
    static constexpr int kScaleChunks = Stage::kGroups / kChunkGroups;

    const StepOperation<T>& op;
    const StepChoice& choice;
    int first_row;
    int done = 0;  // columns

    // Where the rows of this warp begin that have a column.
    __device__ size_t row_of(int column) const {
      const int warp = threadIdx.x / 32 - kStepWarps - 1;
      const int expert = choice.experts[column / op.expert_size];
      return static_cast<size_t>(expert) * op.matrices[0].num_rows + first_row +
             warp * kRows;
    }

    __device__ void copy_next(Stage& stage, int left_bytes) {
      const int lane = threadIdx.x % 32;
      const int warp = threadIdx.x / 32 - kStepWarps - 1;
      const int row_bytes = op.expert_size / 8 * BITS;
      const auto* words = bytes_of(op.matrices[0].words);
#pragma unroll
      for (int at = lane * 16; at < Stage::kRowBytes; at += 512) {
        if (at >= left_bytes) continue;
        const int column = done + at * 8 / BITS;
        const unsigned char* from = words + row_of(column) * row_bytes +
                                    column % op.expert_size * BITS / 8;
        unsigned char* to = stage.words + warp * kRows * Stage::kRowStride + at;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          copy_in(to + i * Stage::kRowStride, from + i * row_bytes);
        }
      }
      if constexpr (!Stage::kDense) copy_scales(stage, left_bytes);
      done += Stage::kColumns;
    }

    __device__ void copy_scales(Stage& stage, int left_bytes) const {
      const int warp = threadIdx.x / 32 - kStepWarps - 1;
      const auto& matrix = op.matrices[0];
      const int groups = op.expert_size / GROUP;
#pragma unroll
      for (int i = threadIdx.x % 32; i < kKinds * kRows * kScaleChunks;
           i += 32) {
        const int at = i % kScaleChunks * kChunkGroups;
        const int row = i / kScaleChunks % kRows;
        if (at * Stage::kGroupBytes >= left_bytes) continue;
        const int column = done + at * GROUP;
        const size_t from =
            (row_of(column) + row) * groups + column % op.expert_size / GROUP;
        const bool is_scale = i < kRows * kScaleChunks;
        copy_in<8>((is_scale ? stage.scales : stage.zeros) +
                       (warp * kRows + row) * Stage::kScaleStride +
                       at * kScaleBytes,
                   bytes_of(is_scale ? matrix.scales : matrix.zeros) +
                       from * kScaleBytes);
      }
    }
  };
};

}  // namespace mlxlm
