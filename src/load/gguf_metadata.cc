#include "load/gguf_metadata.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/checked.h"

namespace mlxlm {
namespace {

static_assert(std::endian::native == std::endian::little,
              "GGUF values are read as they lie in the file");

using Type = GgufValueType;

struct TypeInfo {
  std::string_view name;
  std::uint64_t bytes;
};

constexpr std::array<TypeInfo, kNumGgufValueTypes> kTypes = {{
    {"uint8", 1},
    {"int8", 1},
    {"uint16", 2},
    {"int16", 2},
    {"uint32", 4},
    {"int32", 4},
    {"float32", 4},
    {"boolean", 1},
    {"string", 0},
    {"array", 0},
    {"uint64", 8},
    {"int64", 8},
    {"float64", 8},
}};

constexpr std::initializer_list<Type> kIntegerTypes = {Type::uint8,
                                                       Type::int8,
                                                       Type::uint16,
                                                       Type::int16,
                                                       Type::uint32,
                                                       Type::int32,
                                                       Type::uint64,
                                                       Type::int64};
constexpr std::initializer_list<Type> kNumberTypes = {Type::uint8,
                                                      Type::int8,
                                                      Type::uint16,
                                                      Type::int16,
                                                      Type::uint32,
                                                      Type::int32,
                                                      Type::uint64,
                                                      Type::int64,
                                                      Type::float32,
                                                      Type::float64};

template <typename T>
T load(const GgufValue& value, std::uint64_t index) {
  T out;
  std::memcpy(&out, value.items.data() + index * sizeof(T), sizeof(T));
  return out;
}

// The string at the front of `bytes`, which moves behind it. The file's reader
// checked the lengths.
std::string_view take_string(std::span<const std::byte>& bytes) {
  std::uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof(length));
  auto text = bytes.subspan(sizeof(length), length);
  bytes = bytes.subspan(sizeof(length) + length);
  return {reinterpret_cast<const char*>(text.data()), text.size()};
}

}  // namespace

std::uint64_t gguf_value_bytes(GgufValueType type) {
  return kTypes[static_cast<std::uint32_t>(type)].bytes;
}

Error gguf_error(std::string_view path, const std::string& what) {
  return Error(ErrorKind::format,
               std::string(path) + ": not a usable GGUF file: " + what);
}

std::string quoted_name(std::string_view name) {
  constexpr std::size_t kMaxShown = 80;
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (unsigned char c : name.substr(0, kMaxShown)) {
    if (c < 0x20 || c == 0x7f) {
      out += "\\x";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + (name.size() > kMaxShown ? "...'" : "'");
}

bool GgufMetadata::add(std::string_view key, GgufValue value) {
  if (!values_.emplace(key, value).second) {
    return false;
  }
  keys_.push_back(key);
  return true;
}

const GgufValue* GgufMetadata::find(
    std::string_view key,
    bool array,
    std::string_view wanted,
    std::initializer_list<GgufValueType> types) const {
  auto found = values_.find(key);
  if (found == values_.end()) {
    return nullptr;
  }
  const GgufValue& value = found->second;
  // An empty array may have any type of items.
  bool fits = std::ranges::find(types, value.type) != types.end() ||
              (array && value.count == 0);
  if (value.array != array || !fits) {
    throw gguf_error(
        path_,
        quoted_name(key) + " has the type " +
            std::string(kTypes[static_cast<std::uint32_t>(value.type)].name) +
            (value.array ? "[]" : "") + " where " + std::string(wanted) +
            " is expected");
  }
  return &value;
}

std::int64_t GgufMetadata::integer_at(const GgufValue& value,
                                      std::uint64_t index,
                                      std::string_view key) const {
  switch (value.type) {
    case Type::uint8:
      return load<std::uint8_t>(value, index);
    case Type::int8:
      return load<std::int8_t>(value, index);
    case Type::uint16:
      return load<std::uint16_t>(value, index);
    case Type::int16:
      return load<std::int16_t>(value, index);
    case Type::uint32:
      return load<std::uint32_t>(value, index);
    case Type::int32:
      return load<std::int32_t>(value, index);
    case Type::int64:
      return load<std::int64_t>(value, index);
    default:
      break;
  }
  auto wide = load<std::uint64_t>(value, index);
  if (auto fitting = checked_cast<std::int64_t>(wide)) {
    return *fitting;
  }
  throw gguf_error(path_,
                   quoted_name(key) + " holds " + std::to_string(wide) +
                       ", more than any model has");
}

double GgufMetadata::number_at(const GgufValue& value,
                               std::uint64_t index,
                               std::string_view key) const {
  switch (value.type) {
    case Type::float32:
      return load<float>(value, index);
    case Type::float64:
      return load<double>(value, index);
    default:
      return static_cast<double>(integer_at(value, index, key));
  }
}

std::optional<std::string_view> GgufMetadata::string(
    std::string_view key) const {
  const auto* value = find(key, false, "a string", {Type::string});
  if (value == nullptr) {
    return std::nullopt;
  }
  auto bytes = value->items;
  return take_string(bytes);
}

std::optional<std::int64_t> GgufMetadata::integer(std::string_view key) const {
  const auto* value = find(key, false, "an integer", kIntegerTypes);
  return value == nullptr ? std::nullopt
                          : std::optional(integer_at(*value, 0, key));
}

std::optional<double> GgufMetadata::number(std::string_view key) const {
  const auto* value = find(key, false, "a number", kNumberTypes);
  return value == nullptr ? std::nullopt
                          : std::optional(number_at(*value, 0, key));
}

std::optional<bool> GgufMetadata::boolean(std::string_view key) const {
  const auto* value = find(key, false, "a boolean", {Type::boolean});
  return value == nullptr ? std::nullopt
                          : std::optional(load<std::uint8_t>(*value, 0) != 0);
}

std::optional<std::vector<std::string_view>> GgufMetadata::strings(
    std::string_view key) const {
  const auto* value = find(key, true, "an array of strings", {Type::string});
  if (value == nullptr) {
    return std::nullopt;
  }
  std::vector<std::string_view> out;
  out.reserve(value->count);
  auto bytes = value->items;
  for (std::uint64_t i = 0; i < value->count; ++i) {
    out.push_back(take_string(bytes));
  }
  return out;
}

std::optional<std::vector<std::int64_t>> GgufMetadata::integers(
    std::string_view key) const {
  const auto* value = find(key, true, "an array of integers", kIntegerTypes);
  if (value == nullptr) {
    return std::nullopt;
  }
  std::vector<std::int64_t> out(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    out[i] = integer_at(*value, i, key);
  }
  return out;
}

std::optional<std::vector<float>> GgufMetadata::floats(
    std::string_view key) const {
  const auto* value = find(key, true, "an array of numbers", kNumberTypes);
  if (value == nullptr) {
    return std::nullopt;
  }
  std::vector<float> out(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    out[i] = static_cast<float>(number_at(*value, i, key));
  }
  return out;
}

std::optional<std::vector<bool>> GgufMetadata::booleans(
    std::string_view key) const {
  const auto* value = find(key, true, "an array of booleans", {Type::boolean});
  if (value == nullptr) {
    return std::nullopt;
  }
  std::vector<bool> out(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    out[i] = load<std::uint8_t>(*value, i) != 0;
  }
  return out;
}

bool GgufMetadata::is_array(std::string_view key) const {
  auto found = values_.find(key);
  return found != values_.end() && found->second.array;
}

template <typename T>
T GgufMetadata::required(std::optional<T> value, std::string_view key) const {
  if (!value) {
    throw gguf_error(path_, "the metadata has no " + quoted_name(key));
  }
  return *std::move(value);
}

std::string_view GgufMetadata::required_string(std::string_view key) const {
  return required(string(key), key);
}

std::int64_t GgufMetadata::required_integer(std::string_view key) const {
  return required(integer(key), key);
}

double GgufMetadata::required_number(std::string_view key) const {
  return required(number(key), key);
}

std::vector<std::string_view> GgufMetadata::required_strings(
    std::string_view key) const {
  return required(strings(key), key);
}

}  // namespace mlxlm
