#include "kernels/cpu/pack.h"

#include <algorithm>
#include <atomic>
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
  if (x.status() == mx::array::Status::available && x.flags().row_contiguous) {
    return x;
  }
  auto y = mx::contiguous(x);
  y.eval();
  return y;
}

const std::byte* bytes_of(const mx::array& x) {
  return reinterpret_cast<const std::byte*>(x.data<char>());
}

int scale_bytes(ScaleFormat format) {
  return format == ScaleFormat::f32 ? 4 : 2;
}

std::size_t panel_bytes(const PanelMatrix& m) {
  std::size_t elements = static_cast<std::size_t>(kPanelRows) * m.num_columns;
  std::size_t bytes = elements * element_bits(m.format) / 8;
  if (is_integer(m.format)) {
    bytes += m.scale_bytes();
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

// Numbers are float32's bits. Whether they are float16 or bfloat16 ones as
// well.
bool is_half(std::uint32_t number) {
  const std::uint32_t magnitude = number & 0x7fffffffu;
  if (magnitude == 0) return true;
  const std::uint32_t exponent = magnitude >> 23;
  if (exponent >= 113) return exponent <= 142 && (number & 0x1fffu) == 0;
  // Float16's smallest numbers are multiples of 2^-24.
  return exponent >= 103 && (magnitude & ((1u << (126 - exponent)) - 1)) == 0;
}

bool is_bfloat(std::uint32_t number) { return (number & 0xffffu) == 0; }

std::uint16_t half_of(std::uint32_t number) {
  const std::uint32_t magnitude = number & 0x7fffffffu;
  const std::uint32_t exponent = magnitude >> 23;
  std::uint32_t bits = 0;
  if (exponent >= 113) {
    bits = (magnitude - (112u << 23)) >> 13;
  } else if (magnitude != 0) {
    bits = ((magnitude & 0x7fffffu) | 0x800000u) >> (126 - exponent);
  }
  return static_cast<std::uint16_t>((number >> 16 & 0x8000u) | bits);
}

constexpr std::size_t kNumbersAtOnce = 1 << 16;

// Whether test(begin, end) holds for all parts of `size` numbers.
template <class Test>
bool in_all_parts(std::size_t size, const Test& test) {
  std::atomic<bool> all = true;
  const std::size_t parts = (size + kNumbersAtOnce - 1) / kNumbersAtOnce;
  parallel_for(static_cast<int>(parts), [&](int i) {
    const std::size_t begin = i * kNumbersAtOnce;
    if (all && !test(begin, std::min(begin + kNumbersAtOnce, size))) {
      all = false;
    }
  });
  return all;
}

bool all_are(bool (*test)(std::uint32_t), const mx::array& x) {
  const auto* numbers = x.data<std::uint32_t>();
  return in_all_parts(x.size(), [&](std::size_t begin, std::size_t end) {
    return std::all_of(numbers + begin, numbers + end, test);
  });
}

// Whether each zero is -2^(bits - 1) times the scale, to the bit: so are all in
// formats that know no zeros.
bool all_in_the_middle(const mx::array& scales,
                       const mx::array& zeros,
                       int bits) {
  auto all = [&]<class T>(const T* scale, const T* zero) {
    const float factor = -static_cast<float>(1 << (bits - 1));
    return in_all_parts(scales.size(), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const T expected(factor * static_cast<float>(scale[i]));
        if (std::memcmp(&expected, &zero[i], sizeof(T)) != 0) return false;
      }
      return true;
    });
  };
  auto all_of = [&]<class T>() {
    return all(scales.data<T>(), zeros.data<T>());
  };
  return scales.dtype() == mx::float16    ? all_of.operator()<mx::float16_t>()
         : scales.dtype() == mx::bfloat16 ? all_of.operator()<mx::bfloat16_t>()
                                          : all_of.operator()<float>();
}

// The shortest dtype that holds all values exactly, of arrays in float32.
mx::Dtype shortest_dtype(const std::vector<mx::array>& arrays) {
  auto all = [&](bool (*test)(std::uint32_t)) {
    return std::all_of(arrays.begin(), arrays.end(), [&](const mx::array& x) {
      return all_are(test, x);
    });
  };
  return all(is_half)     ? mx::float16
         : all(is_bfloat) ? mx::bfloat16
                          : mx::float32;
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

ElementFormat integer_format(int bits) {
  using enum ElementFormat;
  for (ElementFormat format : {u2, u3, u4, u5, u6}) {
    if (element_bits(format) == bits) return format;
  }
  return u8;
}

struct Plan {
  PanelMatrix shape;
  Source source;
};

Plan plan_affine(const Linear& l) {
  auto scales = *l.scales;
  auto zeros = *l.zeros;
  auto dtype = scales.dtype();
  const bool short_ones = dtype == mx::float16 || dtype == mx::bfloat16;
  if (!short_ones || zeros.dtype() != dtype) {
    scales = mx::astype(scales, mx::float32);
    zeros = mx::astype(zeros, mx::float32);
  }
  mx::eval(l.weight, scales, zeros);
  scales = row_contiguous(scales);
  zeros = row_contiguous(zeros);
  if (scales.dtype() == mx::float32) dtype = shortest_dtype({scales, zeros});
  Source source{row_contiguous(l.weight), scales, zeros, l.bits};
  PanelMatrix shape;
  shape.num_rows = l.weight.shape(-2);
  shape.group_size = l.group_size;
  shape.num_columns = l.scales->shape(-1) * l.group_size;
  shape.format = integer_format(l.bits);
  shape.scale_format = scale_format_of(dtype);
  shape.has_zeros = !all_in_the_middle(scales, zeros, l.bits);
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

// The scales of floats of 4 bits as numbers: powers of two, or floats of 8 bits
// that a factor of the whole matrix may come to.
mx::array e2m1_scales(const Linear& l) {
  if (l.mode == "mxfp4") {
    // An exponent in bfloat16's place; the smallest is a subnormal number.
    auto bits = mx::left_shift(mx::astype(*l.scales, mx::uint16),
                               mx::array(7, mx::uint16));
    bits = mx::maximum(bits, mx::array(0x40, mx::uint16));
    return mx::view(bits, mx::bfloat16);
  }
  auto scales = mx::from_fp8(*l.scales, mx::float32);
  if (l.global_scale) {
    auto factor = mx::divide(*l.global_scale, mx::array(448.0f * 6.0f));
    scales = mx::multiply(scales, mx::reshape(factor, {-1, 1, 1}));
  }
  scales.eval();
  return mx::astype(scales, shortest_dtype({row_contiguous(scales)}));
}

Plan plan_e2m1(const Linear& l) {
  auto scales = e2m1_scales(l);
  mx::eval(l.weight, scales);
  PanelMatrix shape;
  shape.num_rows = l.weight.shape(-2);
  shape.group_size = l.group_size;
  shape.num_columns = l.scales->shape(-1) * l.group_size;
  shape.format = ElementFormat::e2m1;
  shape.scale_format = scale_format_of(scales.dtype());
  shape.has_zeros = false;
  return {shape,
          {row_contiguous(l.weight), row_contiguous(scales), std::nullopt, 4}};
}

Plan make_plan(const Linear& l) {
  if (l.quantized() && l.mode == "affine" && l.zeros) {
    return plan_affine(l);
  }
  if (l.mode == "mxfp4" || l.mode == "nvfp4") return plan_e2m1(l);
  if (!l.quantized()) {
    auto dtype = l.weight.dtype();
    bool known = dtype == mx::float16 || dtype == mx::bfloat16;
    return plan_floats(known ? l.weight : mx::astype(l.weight, mx::float32));
  }
  // Floats of 8 bits: their values are exact in 16 bits.
  auto values = mx::dequantize(l.weight,
                               *l.scales,
                               l.zeros,
                               l.group_size,
                               l.bits,
                               l.mode,
                               std::nullopt,
                               mx::float32);
  values = row_contiguous(values);
  return plan_floats(mx::astype(values, shortest_dtype({values})));
}

// A row's scales or zeros, `step` bytes apart. They come in the panel's format
// or in float32.
void fill_scales(const PanelMatrix& m,
                 const mx::array& from,
                 std::size_t row,
                 std::size_t step,
                 std::byte* out) {
  const std::size_t size = scale_bytes(m.scale_format);
  const std::size_t groups = m.num_columns / m.group_size;
  const std::byte* numbers = bytes_of(from) + row * groups * from.itemsize();
  for (std::size_t g = 0; g < groups; ++g, out += step) {
    if (from.itemsize() == size) {
      std::memcpy(out, numbers + g * size, size);
      continue;
    }
    std::uint32_t number;
    std::memcpy(&number, numbers + g * sizeof(number), sizeof(number));
    const std::uint16_t shorter =
        m.scale_format == ScaleFormat::f16
            ? half_of(number)
            : static_cast<std::uint16_t>(number >> 16);
    std::memcpy(out, &shorter, sizeof(shorter));
  }
}

// Two words of eight elements of 4 bits, from MLX's order to ours.
std::uint64_t reordered(std::uint64_t words) {
  auto spread = [](std::uint64_t four) {
    four = (four | four << 8) & 0x00ff00ff00ff00ffu;
    return (four | four << 4) & 0x0f0f0f0f0f0f0f0fu;
  };
  constexpr std::uint64_t kLow = 0x0000ffff0000ffffu;
  return spread(words & kLow) | spread(words >> 16 & kLow) << 4;
}

// A row's elements, as MLX packs them a stream of bits, lowest first, in words
// of the panel's format: blocks of both are equally long.
template <int kBits>
void read_blocks(const std::byte* row, std::vector<std::uint32_t>& words) {
  constexpr ElementPlaces kPlaces(kBits);
  constexpr int kWords = kPlaces.block_words();
  constexpr int kFoursPerWord = kPlaces.low_per_word() / 4;
  constexpr std::uint32_t kInAllBytes = 0x01010101u;
  constexpr std::uint32_t kLow = ((1u << kPlaces.low_bits) - 1) * kInAllBytes;
  for (std::size_t block = 0; block < words.size(); block += kWords) {
    std::uint32_t stream[kWords + 1] = {};
    std::memcpy(stream, row + block * 4, kWords * 4);
    std::uint32_t out[kWords] = {};
    for (int four = 0; four < kPlaces.block_columns() / 4; ++four) {
      const int bit = four * 4 * kBits;
      const std::uint64_t two = std::uint64_t{stream[bit / 32 + 1]} << 32;
      const std::uint64_t x = (two | stream[bit / 32]) >> (bit % 32);
      std::uint32_t bytes = 0;  // an element in each
      for (int i = 0; i < 4; ++i) {
        bytes |= (x >> (i * kBits) & ((1u << kBits) - 1)) << (8 * i);
      }
      out[four / kFoursPerWord] |= (bytes & kLow)
                                   << four % kFoursPerWord * kPlaces.low_bits;
      if constexpr (kPlaces.high_bits > 0) {
        out[kWords - 1] |= (bytes & ~kLow) >> kPlaces.low_bits
                                                  << four * kPlaces.high_bits;
      }
    }
    std::memcpy(&words[block], out, sizeof(out));
  }
}

void read_words(ElementFormat format,
                const std::byte* row,
                std::vector<std::uint32_t>& words) {
  using enum ElementFormat;
  switch (format) {
    case u2:
      return read_blocks<2>(row, words);
    case u3:
      return read_blocks<3>(row, words);
    case u5:
      return read_blocks<5>(row, words);
    case u6:
      return read_blocks<6>(row, words);
    case u8:
      std::memcpy(words.data(), row, words.size() * sizeof(words[0]));
      return;
    default:
      break;
  }
  // Groups are of 16 columns and more: words come in twos.
  for (std::size_t i = 0; i < words.size(); i += 2) {
    std::uint64_t two;
    std::memcpy(&two, row + i * 4, sizeof(two));
    two = reordered(two);
    std::memcpy(&words[i], &two, sizeof(two));
  }
}

// Panel `panel` of the expert whose first row in the source is `base_row`.
void fill_integer_panel(const PanelMatrix& m,
                        const Source& source,
                        std::size_t base_row,
                        int panel,
                        std::byte* out) {
  const int rows = std::min(kPanelRows, m.num_rows - panel * kPanelRows);
  const std::size_t size = scale_bytes(m.scale_format);
  const std::size_t step = m.group_scale_bytes();
  const std::size_t row_bytes =
      static_cast<std::size_t>(m.num_columns) * source.bits / 8;
  std::vector<std::uint32_t> words(row_bytes / 4);
  for (int r = 0; r < rows; ++r) {
    const std::size_t row = base_row + panel * kPanelRows + r;
    fill_scales(m, *source.scales, row, step, out + r * size);
    if (m.has_zeros) {
      fill_scales(m, *source.zeros, row, step, out + (kPanelRows + r) * size);
    }
    read_words(m.format, bytes_of(source.weight) + row * row_bytes, words);
    std::byte* to = out + m.scale_bytes() + r * 4;
    for (const std::uint32_t& word : words) {
      std::memcpy(to, &word, 4);
      to += kPanelRows * 4;
    }
  }
}

void fill_float_panel(const PanelMatrix& m,
                      const Source& source,
                      std::size_t base_row,
                      int panel,
                      std::byte* out) {
  const int rows = std::min(kPanelRows, m.num_rows - panel * kPanelRows);
  const std::size_t size = element_bits(m.format) / 8;
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
  parallel_for(experts * panels, [&](int i) {
    const std::size_t base_row =
        static_cast<std::size_t>(i / panels) * shape.num_rows;
    std::byte* out = storage + i * shape.panel_bytes;
    std::memset(out, 0, shape.panel_bytes);  // rows that there aren't
    auto fill = plan.source.bits > 0 ? fill_integer_panel : fill_float_panel;
    fill(shape, plan.source, base_row, i % panels, out);
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
