// What each instruction set implements. Plain pointers and sizes only: these
// functions know nothing of MLX, models or threads, and their translation units
// include no library code that the linker could pick for other machines.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxlm::kernels::cpu {

// Rows of a weight matrix that are stored and computed together.
inline constexpr int kPanelRows = 16;

// How the elements of a packed matrix are stored. The integer formats stand for
// scale * q + zero with a scale and a zero per row and group; e2m1, floats of 4
// bits, are integers of a table of 16 (integer_of_e2m1()).
enum class ElementFormat : std::uint8_t {
  u2,
  u3,
  u4,
  u5,
  u6,
  u8,
  e2m1,
  bf16,
  f16,
  f32
};

constexpr bool is_integer(ElementFormat format) {
  return format <= ElementFormat::e2m1;
}
enum class ScaleFormat : std::uint8_t { f32, f16, bf16 };

// A matrix [num_rows, num_columns] in panels of kPanelRows rows, the last one
// filled up with zeros. Integer formats, per panel: for each group of columns
// 16 scales, and 16 zeros where has_zeros; from the next line on words of 32
// bits, each with bits of one row's elements (ElementPlaces), 16 rows side by
// side. Other formats, per panel and column: 16 elements.
struct PanelMatrix {
  const std::byte* data = nullptr;
  int num_rows = 0;
  int num_columns = 0;
  int group_size = 0;  // columns per scale; num_columns where there are none
  ElementFormat format = ElementFormat::f32;
  ScaleFormat scale_format = ScaleFormat::f32;
  // Where there are no zeros each is minus the middle (element_middle()) times
  // the scale.
  bool has_zeros = true;
  std::size_t panel_bytes = 0;

  int num_panels() const { return (num_rows + kPanelRows - 1) / kPanelRows; }
  // Of one panel: of a group's scales and zeros, and of all, in whole lines.
  std::size_t group_scale_bytes() const {
    const int size = scale_format == ScaleFormat::f32 ? 4 : 2;
    return static_cast<std::size_t>(has_zeros ? 2 : 1) * kPanelRows * size;
  }
  std::size_t scale_bytes() const {
    return (num_columns / group_size * group_scale_bytes() + 63) / 64 * 64;
  }
};

constexpr int element_bits(ElementFormat format) {
  using enum ElementFormat;
  switch (format) {
    case u2:
      return 2;
    case u3:
      return 3;
    case u5:
      return 5;
    case u6:
      return 6;
    case u8:
      return 8;
    case f32:
      return 32;
    case bf16:
    case f16:
      return 16;
    default:
      return 4;
  }
}

// The integer that stands for zero where a matrix has no zeros.
constexpr int element_middle(ElementFormat format) {
  return format == ElementFormat::e2m1 ? 12 : 1 << (element_bits(format) - 1);
}

// Twice the float whose code this is, plus element_middle().
constexpr int integer_of_e2m1(int code) {
  constexpr int kTwice[] = {0, 1, 2, 3, 4, 6, 8, 12};
  const int twice = kTwice[code & 7];
  return element_middle(ElementFormat::e2m1) + (code < 8 ? twice : -twice);
}

// The lowest bit of the i-th place of `bits` bits of a word: four consecutive
// ones lie in the four bytes, so that one shift and one mask make bytes of
// them.
constexpr int element_bit(int bits, int i) { return i % 4 * 8 + i / 4 * bits; }

// Where the bits of integer elements lie: the low ones in places of 8, 4 or 2
// bits, what is left of 3, 5 and 6 bits in smaller places, in the words behind
// those. A block is as many columns as whole words of both hold.
struct ElementPlaces {
  int low_bits;
  int high_bits;  // 0: none

  explicit constexpr ElementPlaces(int bits)
      : low_bits(bits == 8   ? 8
                 : bits >= 4 ? 4
                             : 2),
        high_bits(bits - low_bits) {}

  constexpr int low_per_word() const { return 32 / low_bits; }
  constexpr int block_columns() const {
    return 32 / (high_bits > 0 ? high_bits : low_bits);
  }
  constexpr int low_words() const { return block_columns() * low_bits / 32; }
  constexpr int block_words() const {
    return low_words() + (high_bits > 0 ? 1 : 0);
  }
};

// Columns of activations that share a step: a group's, or of 16-bit integers,
// which have bits to spare, several groups'.
constexpr int step_columns(int planes, int group_size) {
  return planes == 2 ? 128 : group_size;
}

// Rows of activations as integers: x ~ step * n with a step per row and
// step_columns(). n has 8 bits, in one plane, or 16 bits: n = 256 * high
// + low with signed bytes, in a plane of high bytes and one of low bytes, or,
// where that is faster, whole: of four columns 0 and 2 in a word, and 1 and 3
// in the next.
struct IntegerTile {
  // [planes, num_columns / 4, rows], or [num_columns / 4, 2, rows] if whole
  const std::uint32_t* quads;
  const float* steps;          // [num_columns / step_columns(), rows]
  const std::int32_t* starts;  // [groups, rows]: sums times minus the middle
                               // of the elements' range
  const float* sums;           // [groups, rows]: of n
  int num_rows = 0;
  int rows = 0;  // as integer_tile_rows() has them: with some of zeros
  int planes = 2;
};

enum class GateFunction : std::uint8_t {
  silu,
  gelu,
  gelu_tanh,
  gelu_fast,
  relu,
  relu_squared
};

// Keys or values of a head, side by side in a row: float32, float16 or, as MLX
// quantizes them, streams of `bits`, lowest first, in words. Strides, from row
// to row, are in elements or words.
struct HeadRows {
  const void* data = nullptr;
  std::ptrdiff_t stride = 0;
  int bits = 32;
  int group_shift = 0;  // groups of 2^this
  const float* scales = nullptr;
  const float* zeros = nullptr;
  std::ptrdiff_t scale_stride = 0;
  std::ptrdiff_t zero_stride = 0;
};

// Attention of the heads that share a key head over its keys [first_key,
// end_key). Row i is query i % num_queries of head i / num_queries. Masks are
// read where mask_bool or mask_add is set.
struct AttentionTask {
  const float* q = nullptr;
  HeadRows k;
  HeadRows v;
  std::ptrdiff_t head_stride = 0;  // of queries, in floats
  std::ptrdiff_t query_stride = 0;
  int num_heads = 1;
  int num_queries = 0;
  int head_size = 0;
  int value_size = 0;
  int first_key = 0;
  int end_key = 0;
  // Query i sees keys up to causal_end + i (exclusive) if causal.
  bool causal = false;
  int causal_end = 0;
  float scale = 1.0f;
  float softcap = 0.0f;
  const bool* mask_bool = nullptr;
  const float* mask_add = nullptr;
  std::ptrdiff_t mask_head_stride = 0;
  std::ptrdiff_t mask_query_stride = 0;
  std::ptrdiff_t mask_key_stride = 0;
  // Not normalized: per row the largest score, the sum of exponentials
  // relative to it, and the weighted values [num_rows, value_size].
  float* largest = nullptr;
  float* sum = nullptr;
  float* out = nullptr;

  int num_rows() const { return num_heads * num_queries; }
};

// One token of kernels::MatrixScan for some rows of one head's state.
struct MatrixStep {
  const float* before = nullptr;  // [num_rows, key_size]
  float* after = nullptr;         // may be the same
  const float* q = nullptr;
  const float* k = nullptr;
  const float* decay = nullptr;  // [key_size]
  const float* erase = nullptr;  // may be null, and `write` with it
  const float* write = nullptr;
  const float* v = nullptr;  // [num_rows]
  float* y = nullptr;        // [num_rows]
  int num_rows = 0;
  int key_size = 0;
};

// One token of kernels::SelectiveScan for some channels.
struct SelectiveStep {
  const float* before = nullptr;  // [num_channels, state_size]
  float* after = nullptr;         // may be the same
  const float* x = nullptr;       // [num_channels]
  const float* step = nullptr;
  const float* a = nullptr;  // [num_channels, state_size]
  const float* b = nullptr;  // [state_size]
  const float* c = nullptr;
  const float* skip = nullptr;  // [num_channels]
  float* y = nullptr;
  int num_channels = 0;
  int state_size = 0;
};

struct IsaKernels {
  const char* name;

  // The number of rows a tile of `num_rows` is padded to.
  int (*tile_rows)(int num_rows);
  // The most rows a tile can have.
  int max_tile_rows;

  // x [num_rows, num_columns] -> tile [num_columns, tile_rows(num_rows)].
  void (*pack_tile)(const float* x,
                    std::size_t x_stride,
                    int num_rows,
                    int num_columns,
                    float* tile);
  // y[m, r] = sum over c of x[m, c] * w[r, c] for the rows r of panels
  // [begin, end), in the order of the columns.
  void (*matmul)(const PanelMatrix& w,
                 const float* tile,
                 int num_x_rows,
                 int begin,
                 int end,
                 float* y,
                 std::size_t y_stride);

  // The number of rows that an IntegerTile of `num_rows` is padded to, and the
  // most it can have.
  int (*integer_tile_rows)(int num_rows);
  int max_integer_tile_rows;
  // x [tile.num_rows, w.num_columns] -> what the tile points to, for products
  // with matrices of w's groups and format.
  void (*round_rows)(const float* x,
                     const PanelMatrix& w,
                     const IntegerTile& tile,
                     std::uint32_t* quads,
                     float* steps,
                     std::int32_t* starts,
                     float* sums);
  // As matmul, for integer formats: all rows of all tiles, of which only the
  // last may have fewer than the most. `room` has opened_part_words().
  void (*integer_matmul)(const PanelMatrix& w,
                         const IntegerTile* tiles,
                         int num_tiles,
                         int begin,
                         int end,
                         float* y,
                         std::size_t y_stride,
                         std::uint32_t* room);

  // weight and bias may be null.
  void (*rms_norm)(
      const float* x, int size, const float* weight, float eps, float* y);
  void (*layer_norm)(const float* x,
                     int size,
                     const float* weight,
                     const float* bias,
                     float eps,
                     float* y);

  // gate[i] = function(gate[i]) * up[i], or function(gate[i]) if up is null.
  void (*gate)(float* gate, const float* up, int size, GateFunction function);

  // The largest of x, the sum of exp(x - shift), and x[i] - shift.
  float (*largest)(const float* x, std::size_t size);
  float (*sum_of_exponentials)(const float* x, std::size_t size, float shift);
  void (*subtract)(const float* x, std::size_t size, float shift, float* y);

  // y[i] = x[i] + y[i] * factor.
  void (*scale_add)(const float* x, int size, float factor, float* y);
  // y[i] += x[i] * factor.
  void (*add_scaled)(const float* x, int size, float factor, float* y);

  // Rotates pairs (i, i + size) or, interleaved, (2i, 2i + 1) of x.
  void (*rotate)(float* x,
                 const float* cosines,
                 const float* sines,
                 int size,
                 bool interleaved);

  // `scratch` has attention_scratch_floats() floats.
  void (*attention)(const AttentionTask& task, float* scratch);
  std::size_t (*attention_scratch_floats)(const AttentionTask& task);

  // Halves nearest to x [size]; those too large become the largest half.
  void (*to_half)(const float* x, int size, std::uint16_t* y);

  // y = bias + the sum of taps[k] * weights[k], each [size]; bias may be null.
  void (*convolve)(const float* const* taps,
                   const float* weights,
                   const float* bias,
                   int num_taps,
                   int size,
                   bool silu,
                   float* y);
  void (*matrix_step)(const MatrixStep& step);
  void (*selective_step)(const SelectiveStep& step);
  // y = before * decay + x.
  void (*decay_and_add)(const float* before,
                        const float* decay,
                        const float* x,
                        int size,
                        float* y);
};

// What integer_matmul() needs to take a part of a panel apart.
inline std::size_t opened_part_words(const PanelMatrix& w) {
  const int groups = w.num_columns / w.group_size;
  return static_cast<std::size_t>(2 * groups + w.num_columns / 2) * kPanelRows;
}

// Panels that few rows are multiplied with at once.
inline constexpr int kPanelsAtOnce = 4;

// The instruction sets compiled in; null where this machine lacks them.
const IsaKernels* avx512vnni_kernels();
const IsaKernels* avx512_kernels();
const IsaKernels* avx2_kernels();
const IsaKernels* neon_i8mm_kernels();
const IsaKernels* neon_dot_kernels();
const IsaKernels* portable_kernels();

// By its name (avx512vnni, avx512, avx2, neon_i8mm, neon_dot, portable); null
// where this machine can't run it.
const IsaKernels* find_isa_kernels(const char* name);

// The best one here, or the one named by MLX_LM_CPU_ISA. Throws Error{argument}
// for a name this machine can't run.
const IsaKernels& isa_kernels();

}  // namespace mlxlm::kernels::cpu
