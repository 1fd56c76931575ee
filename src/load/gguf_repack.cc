#include "load/gguf_repack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>

#include <mlx/mlx.h>

#include "core/parallel.h"
#include "load/gguf_blocks.h"

namespace mlxlm {
namespace {

// Some milliseconds of work: smaller tensors go side by side.
constexpr std::size_t kMinPartElements = 1 << 22;
constexpr int kFittedBits = 8;
constexpr int kLargestFitted = 255;

// A new array's memory, filled before the array is made.
template <typename T>
class Buffer {
 public:
  Buffer(mx::Shape shape, mx::Dtype dtype)
      : shape_(std::move(shape)),
        dtype_(dtype),
        data_(mx::allocator::malloc(byte_count())) {}

  T* data() { return static_cast<T*>(data_.buffer().raw_ptr()); }
  mx::array finish() { return mx::array(std::move(data_), shape_, dtype_); }

 private:
  std::size_t byte_count() const {
    std::size_t count = mx::size_of(dtype_);
    for (auto size : shape_) {
      count *= static_cast<std::size_t>(size);
    }
    return count;
  }

  mx::Shape shape_;
  mx::Dtype dtype_;
  mx::allocator::Data data_;
};

int result_bits(const GgufBlockFormat& format) {
  return format.has_two_scales ? kFittedBits : format.bits;
}

// A tensor seen as rows.
struct Rows {
  std::size_t count;
  std::size_t elements;  // of each
  std::size_t bytes;     // of each

  explicit Rows(const GgufTensor& tensor)
      : count(1), elements(static_cast<std::size_t>(tensor.shape.back())) {
    for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
      count *= static_cast<std::size_t>(tensor.shape[i]);
    }
    bytes = elements / tensor.type->block_elements * tensor.type->block_bytes;
  }
};

std::span<const std::byte> row_of(const GgufTensor& tensor,
                                  const Rows& rows,
                                  const std::vector<int>& source_rows,
                                  std::size_t row) {
  std::size_t source =
      source_rows.empty() ? row : static_cast<std::size_t>(source_rows[row]);
  return tensor.data.subspan(source * rows.bytes, rows.bytes);
}

mx::Shape with_last(const GgufTensor& tensor, std::size_t last) {
  mx::Shape shape(tensor.shape.begin(), tensor.shape.end());
  shape.back() = static_cast<int>(last);
  return shape;
}

// 32 values of `bits` each, the first in the lowest bits.
void pack(const GgufGroup& group, int bits, std::uint32_t* out) {
  if (bits == 8) {
    std::memcpy(out, group.q.data(), group.q.size());
    return;
  }
  if (bits == 4) {
    for (std::size_t i = 0; i < group.q.size(); i += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, group.q.data() + i, sizeof(eight));
      eight = (eight | eight >> 4) & 0x00ff00ff00ff00ffu;
      eight = (eight | eight >> 8) & 0x0000ffff0000ffffu;
      *out++ = static_cast<std::uint32_t>(eight | eight >> 16);
    }
    return;
  }
  std::uint64_t pending = 0;
  int num_pending = 0;
  for (std::uint8_t q : group.q) {
    pending |= std::uint64_t{q} << num_pending;
    num_pending += bits;
    if (num_pending >= 32) {
      *out++ = static_cast<std::uint32_t>(pending);
      pending >>= 32;
      num_pending -= 32;
    }
  }
}

using Values = std::array<float, kGgufGroupElements>;

Values values_of(const GgufGroup& group) {
  Values values;
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = group.scale[i / 16] * static_cast<float>(group.q[i]) +
                group.bias[i / 16];
  }
  return values;
}

// The halves' values as whole multiples of one step, if 8 bits hold those.
bool merge_exactly(GgufGroup& group) {
  if (group.unit == 0) {
    return false;
  }
  std::array<int, kGgufGroupElements> multiples;
  for (std::size_t i = 0; i < multiples.size(); ++i) {
    multiples[i] = group.steps[i / 16] * (group.q[i] + group.zero);
  }
  auto [low, high] = std::ranges::minmax(multiples);
  int step = 0;
  for (int multiple : multiples) {
    step = std::gcd(step, multiple - low);
  }
  step = std::max(step, 1);
  if ((high - low) / step > kLargestFitted) {
    return false;
  }
  for (std::size_t i = 0; i < multiples.size(); ++i) {
    group.q[i] = static_cast<std::uint8_t>((multiples[i] - low) / step);
  }
  float scale = group.unit * static_cast<float>(step);
  float bias = group.unit * static_cast<float>(low);
  group.scale = {scale, scale};
  group.bias = {bias, bias};
  return true;
}

// The nearest 8-bit grid point; 0 for what isn't a number.
std::uint8_t to_grid(float position) {
  if (!(position > 0)) {
    return 0;
  }
  return position < kLargestFitted ? static_cast<std::uint8_t>(position + 0.5f)
                                   : static_cast<std::uint8_t>(kLargestFitted);
}

// Puts the values onto the grid scale * q + bias; returns the squared error.
double fit_to(const Values& values, float scale, float bias, GgufGroup& out) {
  out.scale = {scale, scale};
  out.bias = {bias, bias};
  double error = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    out.q[i] = scale == 0 ? 0 : to_grid((values[i] - bias) / scale);
    double difference = scale * static_cast<float>(out.q[i]) + bias - values[i];
    error += difference * difference;
  }
  return error;
}

// The better of two grids: one from the smallest to the largest value, and one
// whose points hold the half with the larger steps exactly.
void fit(GgufGroup& group, GgufLoss& loss) {
  const Values values = values_of(group);
  auto [low, high] = std::ranges::minmax(values);
  int coarse = std::abs(group.scale[1]) > std::abs(group.scale[0]) ? 1 : 0;
  float coarse_step = std::abs(group.scale[coarse]);
  float coarse_bias = group.bias[coarse];

  GgufGroup best;
  double error = fit_to(values, (high - low) / kLargestFitted, low, best);
  float parts =
      coarse_step == 0
          ? 0
          : std::floor((kLargestFitted - 1) / ((high - low) / coarse_step));
  if (parts >= 1 && std::isfinite(parts)) {
    float step = coarse_step / parts;
    float bias = coarse_bias - std::ceil((coarse_bias - low) / step) * step;
    GgufGroup aligned;
    double aligned_error = fit_to(values, step, bias, aligned);
    if (aligned_error < error) {
      error = aligned_error;
      best = aligned;
    }
  }
  float largest = std::max(std::abs(low), std::abs(high));
  const Values fitted = values_of(best);
  for (std::size_t i = 0; i < values.size(); ++i) {
    loss.squared_values += double{values[i]} * values[i];
    if (largest > 0) {
      loss.largest = std::max(
          loss.largest, double{std::abs(fitted[i] - values[i])} / largest);
    }
  }
  loss.squared_error += error;
  group = best;
}

// One group with one scale, at the bits of the result.
void merge_halves(GgufGroup& group, GgufLoss& loss) {
  GgufGroup original = group;
  if (!merge_exactly(group)) {
    fit(group, loss);
    return;
  }
  for (float value : values_of(original)) {
    loss.squared_values += double{value} * value;
  }
}

[[noreturn]] void fail_unsupported(const GgufFile& file,
                                   const GgufTensor& tensor) {
  throw Error(ErrorKind::unsupported,
              file.path() + ": tensor " + quoted_name(tensor.name) +
                  " has the type " + std::string(tensor.type->name) +
                  ", which can't be read; take a file with Q2_K to Q8_0, "
                  "IQ4_NL, IQ4_XS, F16 or BF16");
}

}  // namespace

void GgufLoss::add(const GgufLoss& other) {
  squared_error += other.squared_error;
  squared_values += other.squared_values;
  largest = std::max(largest, other.largest);
}

double GgufLoss::relative() const {
  return squared_values > 0 ? std::sqrt(squared_error / squared_values) : 0;
}

bool is_quantized(const GgufTensor& tensor) {
  return find_block_format(*tensor.type) != nullptr;
}

std::uint64_t converted_bytes(const GgufTensor& tensor) {
  const GgufBlockFormat* format = find_block_format(*tensor.type);
  if (format == nullptr) {
    return tensor.data.size();
  }
  const std::uint64_t num_groups =
      tensor.data.size() / tensor.type->block_bytes *
      tensor.type->block_elements / kGgufGroupElements;
  const auto words = static_cast<std::uint64_t>(result_bits(*format)) + 2;
  return num_groups * words * sizeof(std::uint32_t);
}

GgufMatrix repack_tensor(const GgufFile& file,
                         const GgufTensor& tensor,
                         const std::vector<int>& source_rows) {
  const GgufType& type = *tensor.type;
  const GgufBlockFormat* format = find_block_format(type);
  if (format == nullptr) {
    fail_unsupported(file, tensor);
  }
  const int bits = result_bits(*format);
  const Rows rows(tensor);
  const std::size_t num_groups = rows.elements / kGgufGroupElements;
  Buffer<std::uint32_t> weight(
      with_last(tensor, num_groups * static_cast<std::size_t>(bits)),
      mx::uint32);
  Buffer<float> scales(with_last(tensor, num_groups), mx::float32);
  Buffer<float> biases(with_last(tensor, num_groups), mx::float32);
  std::uint32_t* weight_out = weight.data();
  float* scales_out = scales.data();
  float* biases_out = biases.data();

  GgufLoss total_loss;
  bool finite = true;
  std::mutex mutex;
  parallel_for(rows.count,
               kMinPartElements / rows.elements,
               [&](std::size_t begin, std::size_t end) {
                 GgufLoss loss;
                 GgufGroup group;
                 float sum = 0;
                 for (std::size_t row = begin; row < end; ++row) {
                   auto blocks = row_of(tensor, rows, source_rows, row);
                   std::size_t at = row * num_groups;
                   for (std::size_t offset = 0; offset < blocks.size();
                        offset += type.block_bytes) {
                     for (std::uint32_t i = 0;
                          i < type.block_elements / kGgufGroupElements;
                          ++i, ++at) {
                       format->unpack(blocks.data() + offset, i, group);
                       if (format->has_two_scales) {
                         merge_halves(group, loss);
                       }
                       pack(group, bits, weight_out + at * bits);
                       scales_out[at] = group.scale[0];
                       biases_out[at] = group.bias[0];
                       // Stays 0 but for infinities and what isn't a number.
                       sum += (group.scale[0] + group.bias[0]) * 0.0f;
                     }
                   }
                 }
                 std::lock_guard lock(mutex);
                 total_loss.add(loss);
                 finite = finite && sum == 0;
               });
  if (!finite) {
    throw file.error("tensor " + quoted_name(tensor.name) +
                     " has a scale that isn't a finite number: the file is "
                     "damaged");
  }
  return {weight.finish(),
          scales.finish(),
          biases.finish(),
          {static_cast<int>(kGgufGroupElements), bits, "affine"},
          total_loss};
}

mx::array dense_tensor(const GgufFile& file,
                       const GgufTensor& tensor,
                       const std::vector<int>& source_rows) {
  const Rows rows(tensor);
  const std::size_t min_part = kMinPartElements / rows.elements;
  if (const auto* format = find_block_format(*tensor.type)) {
    Buffer<float> values(with_last(tensor, rows.elements), mx::float32);
    float* out = values.data();
    parallel_for(rows.count, min_part, [&](std::size_t begin, std::size_t end) {
      for (std::size_t row = begin; row < end; ++row) {
        dequantize_blocks(*tensor.type,
                          *format,
                          row_of(tensor, rows, source_rows, row),
                          out + row * rows.elements);
      }
    });
    return values.finish();
  }
  auto dtype = tensor.type->name == "F32"    ? mx::float32
               : tensor.type->name == "F16"  ? mx::float16
               : tensor.type->name == "BF16" ? mx::bfloat16
                                             : mx::bool_;
  if (dtype == mx::bool_) {
    fail_unsupported(file, tensor);
  }
  Buffer<std::byte> values(with_last(tensor, rows.elements), dtype);
  std::byte* out = values.data();
  parallel_for(rows.count, min_part, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) {
      auto bytes = row_of(tensor, rows, source_rows, row);
      std::memcpy(out + row * rows.bytes, bytes.data(), bytes.size());
    }
  });
  return values.finish();
}

}  // namespace mlxlm
