// The way back from panels: whole arrays, and rows of embedding tables.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include <mlx/mlx.h>

#include "kernels/cpu/pack.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

int scale_bytes(const PanelMatrix& m) {
  return m.scale_format == ScaleFormat::f32 ? 4 : 2;
}

int float_bytes(const PanelMatrix& m) {
  return m.format == ElementFormat::f32 ? 4 : 2;
}

// Where a row's part of an integer panel begins: scales and zeros of `group`,
// and its words.
struct Group {
  const std::byte* scale;
  const std::byte* zero;  // null where the matrix has none
  const std::byte* words;

  Group(const PanelMatrix& m, int row, int group) {
    const int size = scale_bytes(m);
    const std::size_t words_size = static_cast<std::size_t>(m.group_size) *
                                   element_bits(m.format) / 8 * kPanelRows;
    const int lane = row % kPanelRows;
    const std::byte* panel = m.data + row / kPanelRows * m.panel_bytes;
    scale = panel + group * m.group_scale_bytes() + lane * size;
    zero = m.has_zeros ? scale + kPanelRows * size : nullptr;
    words = panel + m.scale_bytes() + group * words_size + lane * 4;
  }

  // Element c of the group.
  std::uint32_t element(const PanelMatrix& m, int c) const {
    const ElementPlaces places(element_bits(m.format));
    const int block = c / places.block_columns() * places.block_words();
    const int i = c % places.block_columns();
    const int per_word = places.low_per_word();
    const std::uint32_t low = bits(block + i / per_word,
                                   element_bit(places.low_bits, i % per_word),
                                   places.low_bits);
    if (places.high_bits == 0) return low;
    const std::uint32_t high = bits(block + places.low_words(),
                                    element_bit(places.high_bits, i),
                                    places.high_bits);
    return low | high << places.low_bits;
  }

 private:
  std::uint32_t bits(int word, int first, int count) const {
    std::uint32_t value;
    std::memcpy(&value,
                words + static_cast<std::size_t>(word) * kPanelRows * 4,
                sizeof(value));
    return value >> first & ((1u << count) - 1);
  }
};

const std::byte* float_at(const PanelMatrix& m, int row, int column) {
  return m.data + row / kPanelRows * m.panel_bytes +
         (static_cast<std::size_t>(column) * kPanelRows + row % kPanelRows) *
             float_bytes(m);
}

// A float32, float16 or bfloat16 number.
float number_at(const std::byte* p, ScaleFormat format) {
  switch (format) {
    case ScaleFormat::f32: {
      float value;
      std::memcpy(&value, p, 4);
      return value;
    }
    case ScaleFormat::f16: {
      mx::float16_t value;
      std::memcpy(&value, p, 2);
      return static_cast<float>(value);
    }
    default: {
      mx::bfloat16_t value;
      std::memcpy(&value, p, 2);
      return static_cast<float>(value);
    }
  }
}

void put_number(float number, ScaleFormat format, std::byte* p) {
  auto put = [p](auto value) { std::memcpy(p, &value, sizeof(value)); };
  switch (format) {
    case ScaleFormat::f32:
      return put(number);
    case ScaleFormat::f16:
      return put(mx::float16_t(number));
    default:
      return put(mx::bfloat16_t(number));
  }
}

float zero_in_the_middle(float scale, ElementFormat format) {
  return -static_cast<float>(element_middle(format)) * scale;
}

ScaleFormat number_format(ElementFormat format) {
  return format == ElementFormat::f32   ? ScaleFormat::f32
         : format == ElementFormat::f16 ? ScaleFormat::f16
                                        : ScaleFormat::bf16;
}

mx::Dtype dtype_of(ScaleFormat format) {
  return format == ScaleFormat::f32   ? mx::float32
         : format == ScaleFormat::f16 ? mx::float16
                                      : mx::bfloat16;
}

// One row of the packed words, as MLX has them.
void restore_words(const PanelMatrix& m, int row, std::uint32_t* out) {
  const int bits = element_bits(m.format);
  std::memset(out, 0, static_cast<std::size_t>(m.num_columns) * bits / 8);
  for (int c = 0; c < m.num_columns; ++c) {
    const Group group(m, row, c / m.group_size);
    const std::uint64_t value = group.element(m, c % m.group_size);
    const std::size_t bit = static_cast<std::size_t>(c) * bits;
    const std::uint64_t shifted = value << (bit % 32);
    out[bit / 32] |= static_cast<std::uint32_t>(shifted);
    if (shifted >> 32 != 0) {
      out[bit / 32 + 1] |= static_cast<std::uint32_t>(shifted >> 32);
    }
  }
}

void restore_scales(const PanelMatrix& m, int row, bool zeros, std::byte* out) {
  const int size = scale_bytes(m);
  for (int g = 0; g < m.num_columns / m.group_size; ++g) {
    const Group group(m, row, g);
    if (zeros && group.zero == nullptr) {
      const float zero =
          zero_in_the_middle(number_at(group.scale, m.scale_format), m.format);
      put_number(zero, m.scale_format, out + g * size);
      continue;
    }
    std::memcpy(out + g * size, zeros ? group.zero : group.scale, size);
  }
}

void restore_floats(const PanelMatrix& m, int row, std::byte* out) {
  const int size = float_bytes(m);
  for (int c = 0; c < m.num_columns; ++c) {
    std::memcpy(out + c * size, float_at(m, row, c), size);
  }
}

using Shared = std::shared_ptr<const PackedLinear>;

// An array like `like` whose rows `restore(matrix, row, out)` writes when it is
// evaluated, in dtype `stored`.
template <class Restore>
mx::array lazy(Shared packed,
               const mx::array& like,
               mx::Dtype stored,
               Restore restore) {
  const std::size_t row_bytes =
      like.shape(-1) * static_cast<std::size_t>(mx::size_of(stored));
  auto made = host_op(
      "cpu_unpack",
      {{like.shape(), stored}},
      {},
      [packed = std::move(packed), row_bytes, restore](auto, auto out) {
        auto* bytes =
            reinterpret_cast<std::byte*>(out[0].template data<char>());
        const int rows = packed->matrix().num_rows;
        parallel_for(packed->num_experts() * rows, [&](int i) {
          restore(packed->matrix(i / rows), i % rows, bytes + i * row_bytes);
        });
      })[0];
  return mx::astype(made, like.dtype());
}

}  // namespace

void PackedLinear::restore(Shared packed, Linear& linear) {
  const PanelMatrix& m = packed->matrix();
  if (!is_integer(m.format)) {
    linear.weight = lazy(packed,
                         linear.weight,
                         dtype_of(number_format(m.format)),
                         restore_floats);
    return;
  }
  linear.weight =
      lazy(packed,
           linear.weight,
           mx::uint32,
           [](const PanelMatrix& m, int row, std::byte* out) {
             restore_words(m, row, reinterpret_cast<std::uint32_t*>(out));
           });
  if (m.format == ElementFormat::e2m1) return;  // the scales are others here
  auto numbers = [&](bool zeros) {
    return [zeros](const PanelMatrix& m, int row, std::byte* out) {
      restore_scales(m, row, zeros, out);
    };
  };
  const mx::Dtype stored = dtype_of(m.scale_format);
  linear.scales = lazy(packed, *linear.scales, stored, numbers(false));
  linear.zeros = lazy(packed, *linear.zeros, stored, numbers(true));
}

void PackedLinear::read_row(int row, float* out) const {
  const PanelMatrix& m = matrix();
  if (!is_integer(m.format)) {
    for (int c = 0; c < m.num_columns; ++c) {
      out[c] = number_at(float_at(m, row, c), number_format(m.format));
    }
    return;
  }
  for (int g = 0; g < m.num_columns / m.group_size; ++g) {
    const Group group(m, row, g);
    const float scale = number_at(group.scale, m.scale_format);
    const float zero = group.zero == nullptr
                           ? zero_in_the_middle(scale, m.format)
                           : number_at(group.zero, m.scale_format);
    const bool is_e2m1 = m.format == ElementFormat::e2m1;
    for (int c = 0; c < m.group_size; ++c) {
      const auto code = static_cast<int>(group.element(m, c));
      const int q = is_e2m1 ? integer_of_e2m1(code) : code;
      const float value = scale * static_cast<float>(q) + zero;
      *out++ = is_e2m1 ? 0.5f * value : value;
    }
  }
}

void prepare(Linear& linear) {
  if (linear.low_rank) return;
  auto made = packed(linear);
  if (made->is_restorable()) PackedLinear::restore(std::move(made), linear);
}

void read_token(const PackedLinear& table, int token, float* out) {
  const PanelMatrix& m = table.matrix();
  const int row = token < 0 ? token + m.num_rows : token;
  if (row >= 0 && row < m.num_rows) {
    table.read_row(row, out);
  } else {
    std::fill(out, out + m.num_columns, 0.0f);
  }
}

mx::array embed(const Linear& table, const mx::array& tokens) {
  auto rows = packed(table);
  mx::Shape shape = tokens.shape();
  shape.push_back(rows->matrix().num_columns);
  return host_op("cpu_embed",
                 {{shape, mx::float32}},
                 {mx::contiguous(mx::astype(tokens, mx::int32))},
                 [rows](auto in, auto out) {
                   const int width = rows->matrix().num_columns;
                   const auto* ids = in[0].template data<int>();
                   float* y = out[0].template data<float>();
                   for (std::size_t i = 0; i < in[0].size(); ++i) {
                     read_token(*rows, ids[i], y + i * width);
                   }
                 })[0];
}

}  // namespace mlxlm::kernels::cpu
