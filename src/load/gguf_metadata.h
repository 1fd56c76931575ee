// The metadata of a GGUF file: named values of closed types, read where they
// lie in the mapped file, which must outlive this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <mlxlm/error.h>

namespace mlxlm {

// As numbered in the file.
enum class GgufValueType : std::uint32_t {
  uint8,
  int8,
  uint16,
  int16,
  uint32,
  int32,
  float32,
  boolean,
  string,
  array,
  uint64,
  int64,
  float64,
};
constexpr std::uint32_t kNumGgufValueTypes = 13;

// Bytes of one value; 0 where it varies.
std::uint64_t gguf_value_bytes(GgufValueType type);

// One value, or an array of `count` of them, whose bytes were checked.
struct GgufValue {
  GgufValueType type;
  bool array = false;
  std::uint64_t count = 1;
  std::span<const std::byte> items;
};

class GgufMetadata {
 public:
  GgufMetadata() = default;
  // `path`: for messages.
  explicit GgufMetadata(std::string path) : path_(std::move(path)) {}

  bool has(std::string_view key) const { return values_.contains(key); }
  // All keys, in the file's order.
  const std::vector<std::string_view>& keys() const { return keys_; }

  // A value, or none if the key is absent. A value of another kind throws
  // Error{format}. Integers are of any width; a number may be an integer.
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::vector<std::string_view>> strings(
      std::string_view key) const;
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<float>> floats(std::string_view key) const;
  std::optional<std::vector<bool>> booleans(std::string_view key) const;
  // True if the key is there and holds an array.
  bool is_array(std::string_view key) const;

  // The same for keys that must be there: Error{format} names a missing one.
  std::string_view required_string(std::string_view key) const;
  std::int64_t required_integer(std::string_view key) const;
  double required_number(std::string_view key) const;
  std::vector<std::string_view> required_strings(std::string_view key) const;

  // False if the key was there already.
  bool add(std::string_view key, GgufValue value);

 private:
  const GgufValue* find(std::string_view key,
                        bool array,
                        std::string_view wanted,
                        std::initializer_list<GgufValueType> types) const;
  std::int64_t integer_at(const GgufValue& value,
                          std::uint64_t index,
                          std::string_view key) const;
  double number_at(const GgufValue& value,
                   std::uint64_t index,
                   std::string_view key) const;
  template <typename T>
  T required(std::optional<T> value, std::string_view key) const;

  std::string path_;
  std::vector<std::string_view> keys_;
  std::unordered_map<std::string_view, GgufValue> values_;
};

// An Error{format} that names the file.
Error gguf_error(std::string_view path, const std::string& what);

// A name from a file as a message shows it: quoted, unprintable bytes escaped,
// cut to a line.
std::string quoted_name(std::string_view name);

}  // namespace mlxlm
