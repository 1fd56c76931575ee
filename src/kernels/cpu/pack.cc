#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include <mlx/mlx.h>

#include "kernels/cpu/thread_pool.h"

namespace mlxlm::kernels::cpu {
namespace {

// A cache line, and a vector of the widest instruction set.
constexpr std::size_t kAlignment = 64;

mx::array row_contiguous(const mx::array& x) {
  auto y = mx::contiguous(x);
  y.eval();
  return y;
}

const std::byte* bytes_of(const mx::array& x) {
  return reinterpret_cast<const std::byte*>(x.data<char>());
}

int storage_bits(ElementFormat format) {
  switch (format) {
    case ElementFormat::u2:
      return 2;
    case ElementFormat::u4:
      return 4;
    case ElementFormat::u8:
      return 8;
    case ElementFormat::bf16:
    case ElementFormat::f16:
      return 16;
    case ElementFormat::f32:
      return 32;
  }
  return 32;
}

int scale_bytes(ScaleFormat format) {
  return format == ScaleFormat::f32 ? 4 : 2;
}

std::size_t panel_bytes(const PanelMatrix& m) {
  std::size_t elements = static_cast<std::size_t>(kPanelRows) * m.num_columns;
  std::size_t bytes = elements * storage_bits(m.format) / 8;
  if (m.format <= ElementFormat::u8) {
    bytes += static_cast<std::size_t>(m.num_columns / m.group_size) * 2 *
             kPanelRows * scale_bytes(m.scale_format);
  }
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What the panels are filled from: arrays [E, N, ...] seen as [E * N, ...].
struct Source {
  mx::array weight;  // packed words or floats
  std::optional<mx::array> scales;
  std::optional<mx::array> zeros;
  int bits = 0;  // 0: floats
};

bool fits_half(const mx::array& x) {
  auto back = mx::astype(mx::astype(x, mx::float16), mx::float32);
  return mx::all(mx::equal(back, x)).item<bool>();
}

bool fits_bfloat(const mx::array& x) {
  auto back = mx::astype(mx::astype(x, mx::bfloat16), mx::float32);
  return mx::all(mx::equal(back, x)).item<bool>();
}

// The shortest dtype that holds all values exactly.
mx::Dtype shortest_dtype(const std::vector<mx::array>& arrays) {
  auto all = [&](auto&& test) {
    return std::all_of(arrays.begin(), arrays.end(), test);
  };
  for (mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    if (all([&](const mx::array& a) { return a.dtype() == dtype; })) {
      return dtype;
    }
  }
  if (all([](const mx::array& a) {
        return fits_half(mx::astype(a, mx::float32));
      })) {
    return mx::float16;
  }
  if (all([](const mx::array& a) {
        return fits_bfloat(mx::astype(a, mx::float32));
      })) {
    return mx::bfloat16;
  }
  return mx::float32;
}

ScaleFormat scale_format_of(mx::Dtype dtype) {
  return dtype == mx::float16    ? ScaleFormat::f16
         : dtype == mx::bfloat16 ? ScaleFormat::bf16
                                 : ScaleFormat::f32;
}

ElementFormat element_format_of(mx::Dtype dtype) {
  return dtype == mx::float16    ? ElementFormat::f16
         : dtype == mx::bfloat16 ? ElementFormat::bf16
                                 : ElementFormat::f32;
}

struct Plan {
  PanelMatrix shape;
  Source source;
};

Plan plan_affine(const Linear& l) {
  auto dtype = shortest_dtype({*l.scales, *l.zeros});
  Source source{row_contiguous(l.weight),
                row_contiguous(mx::astype(*l.scales, dtype)),
                row_contiguous(mx::astype(*l.zeros, dtype)),
                l.bits};
  PanelMatrix shape;
  shape.num_rows = l.weight.shape(-2);
  shape.group_size = l.group_size;
  shape.num_columns = l.scales->shape(-1) * l.group_size;
  shape.format = l.bits <= 2   ? ElementFormat::u2
                 : l.bits <= 4 ? ElementFormat::u4
                               : ElementFormat::u8;
  shape.scale_format = scale_format_of(dtype);
  shape.bits = l.bits;
  return {shape, std::move(source)};
}

Plan plan_floats(mx::array weight) {
  PanelMatrix shape;
  shape.num_rows = weight.shape(-2);
  shape.num_columns = weight.shape(-1);
  shape.group_size = shape.num_columns;
  shape.format = element_format_of(weight.dtype());
  return {shape, {row_contiguous(weight), std::nullopt, std::nullopt, 0}};
}

Plan make_plan(const Linear& l) {
  if (l.quantized() && l.mode == "affine" && l.zeros) {
    return plan_affine(l);
  }
  if (!l.quantized()) {
    auto dtype = l.weight.dtype();
    bool known = dtype == mx::float16 || dtype == mx::bfloat16;
    return plan_floats(known ? l.weight : mx::astype(l.weight, mx::float32));
  }
  // The floating-point formats: their values are exact in 16 bits.
  auto values = mx::dequantize(l.weight,
                               *l.scales,
                               l.zeros,
                               l.group_size,
                               l.bits,
                               l.mode,
                               std::nullopt,
                               mx::float32);
  if (l.global_scale) {
    auto factor = mx::divide(*l.global_scale, mx::array(448.0f * 6.0f));
    values = mx::multiply(values, mx::reshape(factor, {-1, 1, 1}));
  }
  values.eval();
  return plan_floats(mx::astype(values, shortest_dtype({values})));
}

// Element c of a row packed as MLX does: a stream of bits, lowest first.
std::uint32_t element_at(const std::byte* row, int bits, int c) {
  std::size_t bit = static_cast<std::size_t>(c) * bits;
  const std::byte* p = row + bit / 8;
  std::uint32_t value = std::to_integer<std::uint32_t>(p[0]);
  if (bit % 8 + bits > 8) {
    value |= std::to_integer<std::uint32_t>(p[1]) << 8;
  }
  return value >> (bit % 8) & ((1u << bits) - 1);
}

void fill_scales(const PanelMatrix& m,
                 const mx::array& scales,
                 std::size_t first_row,
                 int rows,
                 int group,
                 std::byte* out) {
  const std::size_t size = scale_bytes(m.scale_format);
  const std::size_t groups = m.num_columns / m.group_size;
  for (int r = 0; r < rows; ++r) {
    std::memcpy(out + r * size,
                bytes_of(scales) + ((first_row + r) * groups + group) * size,
                size);
  }
}

// Eight elements of 4 bits, or four of 8, from MLX's order to ours.
std::uint32_t reordered(int bits, std::uint32_t word) {
  if (bits == 8) return word;
  auto spread = [](std::uint32_t four) {
    four = (four | four << 8) & 0x00ff00ffu;
    return (four | four << 4) & 0x0f0f0f0fu;
  };
  return spread(word & 0xffffu) | spread(word >> 16) << 4;
}

// Panel `panel` of the expert whose first row in the source is `base_row`.
void fill_integer_panel(const PanelMatrix& m,
                        const Source& source,
                        std::size_t base_row,
                        int panel,
                        std::byte* out) {
  const int rows = std::min(kPanelRows, m.num_rows - panel * kPanelRows);
  const std::size_t first_row = base_row + panel * kPanelRows;
  const int bits = storage_bits(m.format);
  const int per_word = 32 / bits;
  const int spare = bits - source.bits;
  const std::size_t row_bytes =
      static_cast<std::size_t>(m.num_columns) * source.bits / 8;
  const std::size_t scales_size = kPanelRows * scale_bytes(m.scale_format);
  for (int c = 0; c < m.num_columns;) {
    const int group = c / m.group_size;
    fill_scales(m, *source.scales, first_row, rows, group, out);
    fill_scales(m, *source.zeros, first_row, rows, group, out + scales_size);
    out += 2 * scales_size;
    for (int end = c + m.group_size; c < end; c += per_word) {
      for (int r = 0; r < rows; ++r) {
        const std::byte* row =
            bytes_of(source.weight) + (first_row + r) * row_bytes;
        std::uint32_t word = 0;
        if (bits >= 4 && spare == 0) {
          std::memcpy(&word, row + c * bits / 8, 4);
          word = reordered(bits, word);
        }
        for (int e = 0; e < per_word && (bits < 4 || spare != 0); ++e) {
          word |= element_at(row, source.bits, c + e)
                  << (element_bit(bits, e) + spare);
        }
        std::memcpy(out + r * 4, &word, 4);
      }
      out += kPanelRows * 4;
    }
  }
}

void fill_float_panel(const PanelMatrix& m,
                      const Source& source,
                      std::size_t base_row,
                      int panel,
                      std::byte* out) {
  const int rows = std::min(kPanelRows, m.num_rows - panel * kPanelRows);
  const std::size_t size = storage_bits(m.format) / 8;
  for (int r = 0; r < rows; ++r) {
    const std::byte* row =
        bytes_of(source.weight) +
        (base_row + panel * kPanelRows + r) * m.num_columns * size;
    for (int c = 0; c < m.num_columns; ++c) {
      std::memcpy(out + (static_cast<std::size_t>(c) * kPanelRows + r) * size,
                  row + c * size,
                  size);
    }
  }
}

}  // namespace

std::shared_ptr<const PackedLinear> PackedLinear::make(const Linear& linear) {
  Plan plan = make_plan(linear);
  PanelMatrix& shape = plan.shape;
  shape.panel_bytes = panel_bytes(shape);
  const int experts = linear.weight.ndim() == 3 ? linear.weight.shape(0) : 1;
  const int panels = shape.num_panels();
  const std::size_t matrix_bytes = shape.panel_bytes * panels;

  auto result = std::make_shared<PackedLinear>();
  result->num_bytes_ = matrix_bytes * experts;
  result->restorable_ = !linear.quantized() || plan.source.bits > 0;
  result->storage_.emplace(result->num_bytes_);
  std::byte* storage = result->storage_->data();
  std::memset(storage, 0, result->num_bytes_);
  parallel_for(experts * panels, [&](int i) {
    const std::size_t base_row =
        static_cast<std::size_t>(i / panels) * shape.num_rows;
    auto fill = plan.source.bits > 0 ? fill_integer_panel : fill_float_panel;
    fill(shape,
         plan.source,
         base_row,
         i % panels,
         storage + i * shape.panel_bytes);
  });
  for (int e = 0; e < experts; ++e) {
    shape.data = storage + e * matrix_bytes;
    result->matrices_.push_back(shape);
  }
  if (linear.bias) {
    auto bias = row_contiguous(mx::astype(*linear.bias, mx::float32));
    result->bias_.assign(bias.data<float>(), bias.data<float>() + bias.size());
  }
  return result;
}

std::shared_ptr<const PackedLinear> packed(const Linear& linear) {
  if (!linear.prepared) {
    linear.prepared =
        std::const_pointer_cast<PackedLinear>(PackedLinear::make(linear));
  }
  return std::static_pointer_cast<const PackedLinear>(linear.prepared);
}

}  // namespace mlxlm::kernels::cpu
