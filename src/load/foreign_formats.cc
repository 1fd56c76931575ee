#include "load/foreign_formats.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "load/quantization.h"

namespace mlxlm::foreign {
namespace {

// The names that end with `suffix`, without it, sorted.
std::vector<std::string> modules_with(const Weights& weights,
                                      std::string_view suffix) {
  std::vector<std::string> modules;
  for (const auto& [name, value] : weights) {
    if (name.ends_with(suffix)) {
      modules.push_back(name.substr(0, name.size() - suffix.size()));
    }
  }
  std::sort(modules.begin(), modules.end());
  return modules;
}

const mx::array* find(const Weights& weights, const std::string& name) {
  auto it = weights.find(name);
  return it == weights.end() ? nullptr : &it->second;
}

bool is_float(const mx::array& array) {
  return mx::issubdtype(array.dtype(), mx::floating);
}

bool is_word(const mx::array& array) {
  return array.dtype() == mx::int32 || array.dtype() == mx::uint32;
}

// q [A, B] of eight 4-bit numbers each -> [A, 8 * B]; `shifts` in the order
// of the numbers.
mx::array unpack(const mx::array& q, const std::vector<int>& shifts) {
  mx::array numbers = mx::bitwise_and(
      mx::right_shift(
          mx::expand_dims(q, -1),
          mx::array(
              shifts.data(), {static_cast<int>(shifts.size())}, mx::int32)),
      mx::array(15));
  return mx::reshape(numbers, {q.shape(0), -1});
}

// Rows of 4-bit numbers [N, K] -> MLX's words [N, K / 8].
mx::array pack(const mx::array& numbers) {
  mx::array eights =
      mx::reshape(mx::astype(numbers, mx::uint32), {numbers.shape(0), -1, 8});
  mx::array shifts =
      mx::multiply(mx::arange(8, mx::uint32), mx::array(4, mx::uint32));
  return mx::astype(mx::sum(mx::left_shift(eights, shifts), -1), mx::uint32);
}

// AutoAWQ interleaves the numbers of a word; GPTQ doesn't.
const std::vector<int> kAwqShifts = {0, 16, 4, 20, 8, 24, 12, 28};
const std::vector<int> kGptqShifts = {0, 4, 8, 12, 16, 20, 24, 28};

struct Packed {
  mx::array qweight;
  mx::array scales;  // [groups, N]
  const mx::array* qzeros;
};

struct Unpacked {
  mx::array numbers;  // [N, K]
  mx::array zeros;    // [N, groups]
};

// qweight [K, N / 8], qzeros [groups, N / 8].
Unpacked unpack_awq(const Packed& packed) {
  mx::array zeros =
      packed.qzeros != nullptr
          ? mx::transpose(unpack(*packed.qzeros, kAwqShifts))
          : mx::full(mx::transpose(packed.scales).shape(), 8, mx::int32);
  return {mx::transpose(unpack(packed.qweight, kAwqShifts)), zeros};
}

// qweight [K / 8, N], qzeros [groups, N / 8] holding the zeros minus
// `zero_offset`.
Unpacked unpack_gptq(const Packed& packed, int zero_offset) {
  mx::array numbers = unpack(mx::transpose(packed.qweight), kGptqShifts);
  if (packed.qzeros == nullptr) {
    return {numbers,
            mx::full(mx::transpose(packed.scales).shape(), 8, mx::int32)};
  }
  mx::array zeros = mx::bitwise_and(
      mx::add(unpack(*packed.qzeros, kGptqShifts), mx::array(zero_offset)),
      mx::array(15));
  return {numbers, mx::transpose(zeros)};
}

// GPTQ's map from columns to groups: in order or absent, else the columns
// would have to be shuffled.
bool groups_in_order(const mx::array& g_idx, int group_size) {
  mx::array wanted = mx::floor_divide(mx::arange(g_idx.shape(0), mx::int32),
                                      mx::array(group_size));
  return mx::array_equal(mx::astype(g_idx, mx::int32), wanted).item<bool>();
}

std::string fault_of(const Packed& packed) {
  const mx::array& q = packed.qweight;
  const mx::array& scales = packed.scales;
  if (!is_word(q) || q.ndim() != 2) {
    return "qweight must be a matrix of 32-bit integers, not " + to_text(q);
  }
  if (!is_float(scales) || scales.ndim() != 2 || scales.shape(0) == 0) {
    return "scales must be a matrix of numbers, not " + to_text(scales);
  }
  if (packed.qzeros != nullptr &&
      (!is_word(*packed.qzeros) ||
       packed.qzeros->shape() !=
           mx::Shape{scales.shape(0), scales.shape(1) / 8})) {
    return "qzeros " + to_text(*packed.qzeros) + " don't fit scales " +
           to_text(scales);
  }
  return "";
}

}  // namespace

Quantization convert_awq_gptq(const ConfigReader& settings,
                              Weights& weights,
                              Faults& faults) {
  Quantization q;
  q.bits = settings.get_int("bits", 4);
  q.group_size = settings.get_int("group_size", 128, 1);
  if (q.bits != 4) {
    settings.fail("bits", "4 for AWQ and GPTQ models");
  }
  if (!is_supported(q)) {
    settings.fail("group_size", "32, 64 or 128");
  }
  // The second version of the format stores the zeros as they are.
  int zero_offset =
      settings.get_string("checkpoint_format", "gptq") == "gptq_v2" ? 0 : 1;
  std::optional<mx::Dtype> dtype;
  for (const std::string& module : modules_with(weights, ".qweight")) {
    const mx::array* scales = find(weights, module + ".scales");
    if (scales == nullptr) {
      faults.add(module, "has a qweight, but no scales");
      continue;
    }
    Packed packed{weights.at(module + ".qweight"),
                  *scales,
                  find(weights, module + ".qzeros")};
    std::string fault = fault_of(packed);
    if (!fault.empty()) {
      faults.add(module, fault);
      continue;
    }
    std::int64_t columns = std::int64_t{scales->shape(0)} * q.group_size;
    mx::Shape awq = {static_cast<int>(columns), scales->shape(1) / 8};
    mx::Shape gptq = {static_cast<int>(columns / 8), scales->shape(1)};
    bool is_gptq = packed.qweight.shape() == gptq;
    if ((!is_gptq && packed.qweight.shape() != awq) ||
        scales->shape(1) % 8 != 0) {
      faults.add(module,
                 "qweight " + to_text(packed.qweight.shape()) +
                     " doesn't fit scales " + to_text(scales->shape()) +
                     " with groups of " + std::to_string(q.group_size));
      continue;
    }
    if (const mx::array* g_idx = find(weights, module + ".g_idx")) {
      if (g_idx->ndim() != 1 || g_idx->size() != std::size_t(columns) ||
          !is_gptq || !groups_in_order(*g_idx, q.group_size)) {
        faults.add(module,
                   "its columns are in groups out of order (g_idx), which MLX "
                   "can't hold; take a model without act-order");
        continue;
      }
      weights.erase(module + ".g_idx");
    }
    Unpacked unpacked =
        is_gptq ? unpack_gptq(packed, zero_offset) : unpack_awq(packed);
    mx::array s = mx::contiguous(mx::transpose(*scales));
    dtype = s.dtype();
    mx::array biases = mx::astype(
        mx::multiply(mx::negative(mx::astype(unpacked.zeros, mx::float32)), s),
        s.dtype());
    mx::array weight = pack(unpacked.numbers);
    weights.erase(module + ".qweight");
    weights.erase(module + ".qzeros");
    weights.insert_or_assign(module + ".weight", weight);
    weights.insert_or_assign(module + ".scales", s);
    weights.insert_or_assign(module + ".biases", biases);
  }
  if (dtype) {
    for (auto& [name, value] : weights) {
      if (is_float(value)) {
        value = mx::astype(value, *dtype);
      }
    }
  }
  return q;
}

namespace {

// Formats whose numbers are already in MLX's order.
void take_packed(const std::string& module,
                 const Quantization& q,
                 Weights& weights,
                 Faults& faults) {
  const mx::array* packed = find(weights, module + ".weight_packed");
  const mx::array* scale = find(weights, module + ".weight_scale");
  if (scale == nullptr) {
    faults.add(module, "has a weight_packed, but no weight_scale");
    return;
  }
  if (weights.contains(module + ".weight_zero_point")) {
    faults.add(module, "has a weight_zero_point, which isn't supported");
    return;
  }
  if (weights.contains(module + ".weight_g_idx")) {
    faults.add(module, "has a weight_g_idx, which isn't supported");
    return;
  }
  std::size_t row_bytes =
      packed->ndim() < 2 ? 0 : packed->shape(-1) * packed->itemsize();
  if (row_bytes == 0 || row_bytes % 4 != 0 ||
      !(is_word(*packed) || packed->dtype() == mx::uint8)) {
    faults.add(module, "weight_packed is " + to_text(*packed));
    return;
  }
  mx::array weight = mx::view(*packed, mx::uint32);
  mx::array scales = *scale;
  weights.erase(module + ".weight_packed");
  weights.erase(module + ".weight_scale");
  weights.erase(module + ".weight_shape");
  weights.insert_or_assign(module + ".weight", weight);
  weights.insert_or_assign(module + ".scales", scales);
  if (q.mode == "affine") {
    // Numbers of -8 to 7, stored with 8 added.
    weights.insert_or_assign(
        module + ".biases",
        mx::multiply(mx::array(-8, scales.dtype()), scales));
  }
}

// The group size that the first configured group of modules names.
int compressed_group_size(const ConfigReader& settings, int fallback) {
  auto groups = settings.find_object("config_groups");
  if (!groups) {
    return fallback;
  }
  for (const auto& [name, value] : groups->raw().items()) {
    auto group = groups->find_object(name);
    auto parameters = group ? group->find_object("weights") : std::nullopt;
    if (parameters) {
      if (parameters->get_int("num_bits", 4) != 4) {
        parameters->fail("num_bits", "4");
      }
      return parameters->get_int(
          "group_size", fallback, std::numeric_limits<int>::min());
    }
  }
  return fallback;
}

}  // namespace

Quantization convert_compressed_tensors(const ConfigReader& settings,
                                        Weights& weights,
                                        Faults& faults) {
  std::string format = settings.get_string("format", "");
  Quantization q;
  if (format == "nvfp4-pack-quantized") {
    q = {16, 4, "nvfp4"};
    for (const std::string& module : modules_with(weights, ".weight_packed")) {
      faults.add(module,
                 "is NVFP4 with a scale for the whole tensor, which isn't "
                 "supported; convert the model with mlx_lm.convert");
    }
    return q;
  }
  if (format == "mxfp4-pack-quantized") {
    q = {32, 4, "mxfp4"};
  } else if (format == "pack-quantized") {
    q = {compressed_group_size(settings, 32), 4, "affine"};
  } else {
    settings.fail("format",
                  "pack-quantized, mxfp4-pack-quantized or "
                  "nvfp4-pack-quantized (convert others to bfloat16 first)");
  }
  if (!is_supported(q)) {
    throw Error(ErrorKind::unsupported,
                "config.json: compressed-tensors weights of group size " +
                    std::to_string(q.group_size) +
                    " can't be held by MLX, which has 32, 64 and 128; convert "
                    "the model to bfloat16 first");
  }
  for (const std::string& module : modules_with(weights, ".weight_packed")) {
    take_packed(module, q, weights, faults);
  }
  return q;
}

void convert_mxfp4_blocks(Weights& weights, Faults& faults) {
  for (const std::string& module : modules_with(weights, "_blocks")) {
    const mx::array& blocks = weights.at(module + "_blocks");
    const mx::array* scales = find(weights, module + "_scales");
    if (scales == nullptr) {
      faults.add(module, "has _blocks, but no _scales");
      continue;
    }
    mx::Shape groups = blocks.shape();
    bool fits = groups.size() >= 3 && groups.back() == 16 &&
                blocks.dtype() == mx::uint8 && scales->dtype() == mx::uint8;
    if (fits) {
      groups.pop_back();
    }
    if (!fits || groups != scales->shape()) {
      faults.add(module,
                 "MXFP4 blocks " + to_text(blocks) + " and scales " +
                     to_text(*scales) + " don't fit together");
      continue;
    }
    mx::array weight = mx::flatten(mx::view(blocks, mx::uint32), -2, -1);
    mx::array taken = *scales;
    weights.erase(module + "_blocks");
    weights.erase(module + "_scales");
    weights.insert_or_assign(module + ".weight", weight);
    weights.insert_or_assign(module + ".scales", taken);
  }
}

void convert_mxfp8(Weights& weights, Faults& faults) {
  constexpr std::string_view kScale = ".weight_scale_inv";
  for (const std::string& module : modules_with(weights, kScale)) {
    const mx::array* weight = find(weights, module + ".weight");
    mx::array scales = weights.at(module + std::string(kScale));
    if (weight == nullptr || weight->dtype() != mx::uint8 ||
        weight->ndim() < 2 || weight->shape(-1) % 32 != 0 ||
        scales.ndim() != weight->ndim() || scales.size() == 0) {
      faults.add(module,
                 "MXFP8 scales " + to_text(scales) + " without a weight of " +
                     "8-bit floats they fit");
      continue;
    }
    if (scales.dtype() != mx::uint8) {
      // Powers of two as floats: their exponents.
      scales = mx::astype(
          mx::add(mx::log2(mx::astype(scales, mx::float32)), mx::array(127.0f)),
          mx::uint8);
    }
    if (scales.shape(-2) != weight->shape(-2)) {
      if (std::int64_t{scales.shape(-2)} * 32 < weight->shape(-2)) {
        faults.add(module,
                   "scales " + to_text(scales) + " don't cover weight " +
                       to_text(*weight));
        continue;
      }
      mx::array rows = mx::repeat(scales, 32, -2);
      mx::Shape stop = rows.shape();
      stop[stop.size() - 2] = weight->shape(-2);
      scales = mx::slice(rows, mx::Shape(stop.size(), 0), stop);
    }
    mx::array words = mx::view(*weight, mx::uint32);
    weights.erase(module + std::string(kScale));
    weights.insert_or_assign(module + ".weight", words);
    weights.insert_or_assign(module + ".scales", scales);
  }
}

namespace {

// As NumPy broadcasts `scale` to `weight`.
bool broadcasts(const mx::Shape& scale, const mx::Shape& weight) {
  if (scale.size() > weight.size()) {
    return false;
  }
  for (std::size_t i = 0; i < scale.size(); ++i) {
    int size = scale[scale.size() - 1 - i];
    if (size != 1 && size != weight[weight.size() - 1 - i]) {
      return false;
    }
  }
  return true;
}

// weight [M, N] in bfloat16, scale [ceil(M / block), ceil(N / block)].
mx::array scale_blocks(const mx::array& weight,
                       const mx::array& scale,
                       int block) {
  int rows = weight.shape(0);
  int columns = weight.shape(1);
  int padded_rows = scale.shape(0) * block;
  int padded_columns = scale.shape(1) * block;
  mx::array padded =
      mx::pad(weight,
              std::vector<std::pair<int, int>>{{0, padded_rows - rows},
                                               {0, padded_columns - columns}});
  padded = mx::reshape(padded, {scale.shape(0), block, scale.shape(1), block});
  mx::array scaled = mx::reshape(
      mx::multiply(padded, mx::expand_dims(scale, std::vector<int>{1, 3})),
      {padded_rows, padded_columns});
  return mx::slice(scaled, {0, 0}, {rows, columns});
}

}  // namespace

void dequantize_fp8(int block, Weights& weights, Faults& faults) {
  constexpr std::string_view kSuffix = "_scale_inv";
  for (const std::string& name : modules_with(weights, kSuffix)) {
    const mx::array* bytes = find(weights, name);
    const mx::array& scale = weights.at(name + std::string(kSuffix));
    if (bytes == nullptr || bytes->dtype() != mx::uint8 || !is_float(scale)) {
      faults.add(name, "has a scale_inv, but isn't of 8-bit floats");
      continue;
    }
    auto blocks_of = [&](int size) { return (size + block - 1) / block; };
    mx::array weight = mx::from_fp8(*bytes, mx::bfloat16);
    std::optional<mx::array> scaled;
    if (broadcasts(scale.shape(), weight.shape())) {
      scaled = mx::multiply(weight, scale);
    } else if (weight.ndim() == 2 &&
               scale.shape() == mx::Shape{blocks_of(weight.shape(0)),
                                          blocks_of(weight.shape(1))}) {
      scaled = scale_blocks(weight, scale, block);
    } else {
      faults.add(name,
                 "scale_inv " + to_text(scale.shape()) + " doesn't fit " +
                     to_text(weight.shape()) + " in blocks of " +
                     std::to_string(block));
      continue;
    }
    weights.erase(name + std::string(kSuffix));
    weights.insert_or_assign(name, mx::astype(*scaled, mx::bfloat16));
  }
}

Quantization convert_bitnet(const ConfigReader& settings,
                            Weights& weights,
                            Faults& faults) {
  bool inverse = settings.get_string("linear_class", "") != "autobitlinear";
  Quantization q{64, 2, "affine"};
  const auto modules = modules_with(weights, ".weight_scale");
  for (const std::string& module : modules) {
    const mx::array* bytes = find(weights, module + ".weight");
    if (bytes != nullptr && bytes->ndim() == 2 && bytes->shape(1) % 64 != 0) {
      q.group_size = 32;
    }
  }
  for (const std::string& module : modules) {
    const mx::array* bytes = find(weights, module + ".weight");
    const mx::array& given = weights.at(module + ".weight_scale");
    if (bytes == nullptr || bytes->dtype() != mx::uint8 || bytes->ndim() != 2 ||
        bytes->shape(1) % q.group_size != 0 || given.size() != 1 ||
        !is_float(given)) {
      faults.add(module,
                 "must have a weight of four 2-bit numbers a byte, its rows "
                 "a multiple of 32, and one weight_scale");
      continue;
    }
    // Row i + j * N / 4 is in bits 2 j of row i.
    mx::array shifts =
        mx::reshape(mx::array({0, 2, 4, 6}, mx::uint8), {4, 1, 1});
    mx::array numbers = mx::reshape(
        mx::bitwise_and(mx::right_shift(mx::expand_dims(*bytes, 0), shifts),
                        mx::array(3, mx::uint8)),
        {4 * bytes->shape(0), -1, 16});
    mx::array places =
        mx::multiply(mx::arange(16, mx::uint32), mx::array(2, mx::uint32));
    mx::array weight = mx::astype(
        mx::sum(mx::left_shift(mx::astype(numbers, mx::uint32), places), -1),
        mx::uint32);
    mx::array scale = mx::reshape(mx::astype(given, mx::float32), {1, 1});
    scale = inverse ? mx::reciprocal(scale) : scale;
    mx::Shape shape = {4 * bytes->shape(0), bytes->shape(1) / q.group_size};
    mx::array scales = mx::contiguous(mx::broadcast_to(scale, shape));
    weights.erase(module + ".weight_scale");
    weights.insert_or_assign(module + ".weight", weight);
    weights.insert_or_assign(module + ".scales", scales);
    weights.insert_or_assign(module + ".biases", mx::negative(scales));
  }
  return q;
}

}  // namespace mlxlm::foreign
