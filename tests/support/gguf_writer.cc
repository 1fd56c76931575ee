#include "tests/support/gguf_writer.h"

#include <fstream>
#include <stdexcept>

namespace mlxlm {
namespace {

// Numbers of the value types.
constexpr std::uint32_t kUint32 = 4;
constexpr std::uint32_t kInt32 = 5;
constexpr std::uint32_t kFloat32 = 6;
constexpr std::uint32_t kBoolean = 7;
constexpr std::uint32_t kString = 8;
constexpr std::uint32_t kArray = 9;
constexpr std::uint32_t kUint64 = 10;
constexpr std::uint32_t kFloat64 = 12;

void pad(std::string& bytes, std::uint64_t alignment) {
  bytes.append((alignment - bytes.size() % alignment) % alignment, '\0');
}

template <typename Items, typename Write>
std::string array_bytes(std::uint32_t type, const Items& items, Write write) {
  std::string out =
      raw_bytes(type) + raw_bytes(static_cast<std::uint64_t>(items.size()));
  for (const auto& item : items) {
    out += write(item);
  }
  return out;
}

}  // namespace

std::string gguf_string(std::string_view text) {
  return raw_bytes(static_cast<std::uint64_t>(text.size())) + std::string(text);
}

GgufWriter& GgufWriter::add_raw(std::string_view key,
                                std::uint32_t type,
                                std::string_view bytes) {
  entries_ += gguf_string(key) + raw_bytes(type) + std::string(bytes);
  ++entry_count_;
  return *this;
}

GgufWriter& GgufWriter::add(std::string_view key, const char* value) {
  return add(key, std::string_view(value));
}

GgufWriter& GgufWriter::add(std::string_view key, std::string_view value) {
  return add_raw(key, kString, gguf_string(value));
}

GgufWriter& GgufWriter::add(std::string_view key, bool value) {
  return add_raw(key, kBoolean, std::string(1, value ? '\1' : '\0'));
}

GgufWriter& GgufWriter::add(std::string_view key, std::uint32_t value) {
  return add_raw(key, kUint32, raw_bytes(value));
}

GgufWriter& GgufWriter::add(std::string_view key, std::int32_t value) {
  return add_raw(key, kInt32, raw_bytes(value));
}

GgufWriter& GgufWriter::add(std::string_view key, std::uint64_t value) {
  return add_raw(key, kUint64, raw_bytes(value));
}

GgufWriter& GgufWriter::add(std::string_view key, float value) {
  return add_raw(key, kFloat32, raw_bytes(value));
}

GgufWriter& GgufWriter::add(std::string_view key, double value) {
  return add_raw(key, kFloat64, raw_bytes(value));
}

GgufWriter& GgufWriter::add(std::string_view key,
                            const std::vector<std::string>& value) {
  return add_raw(key, kArray, array_bytes(kString, value, gguf_string));
}

GgufWriter& GgufWriter::add(std::string_view key,
                            const std::vector<std::int32_t>& value) {
  return add_raw(
      key, kArray, array_bytes(kInt32, value, raw_bytes<std::int32_t>));
}

GgufWriter& GgufWriter::add(std::string_view key,
                            const std::vector<float>& value) {
  return add_raw(key, kArray, array_bytes(kFloat32, value, raw_bytes<float>));
}

GgufWriter& GgufWriter::add(std::string_view key,
                            const std::vector<bool>& value) {
  return add_raw(key, kArray, array_bytes(kBoolean, value, [](bool item) {
                   return std::string(1, item ? '\1' : '\0');
                 }));
}

GgufWriter& GgufWriter::add_tensor(std::string_view name,
                                   const std::vector<std::uint64_t>& shape,
                                   std::uint32_t type,
                                   std::string_view data) {
  tensors_.push_back(
      {std::string(name), shape, type, std::string(data), std::nullopt});
  return *this;
}

GgufWriter& GgufWriter::add_tensor(std::string_view name,
                                   const std::vector<std::uint64_t>& shape,
                                   const std::vector<float>& values) {
  return add_tensor(name,
                    shape,
                    0,
                    {reinterpret_cast<const char*>(values.data()),
                     values.size() * sizeof(float)});
}

GgufWriter& GgufWriter::set_offset(std::uint64_t offset) {
  tensors_.back().offset = offset;
  return *this;
}

std::string GgufWriter::bytes() const {
  std::string out = magic + raw_bytes(version) +
                    raw_bytes(num_tensors.value_or(tensors_.size())) +
                    raw_bytes(num_entries.value_or(entry_count_)) + entries_;
  std::string data;
  for (const auto& tensor : tensors_) {
    pad(data, alignment);
    out += gguf_string(tensor.name) +
           raw_bytes(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend();
         ++size) {
      out += raw_bytes(*size);
    }
    std::uint64_t offset = tensor.offset.value_or(data.size());
    out += raw_bytes(tensor.type) + raw_bytes(offset);
    data += tensor.data;
  }
  pad(out, alignment);
  return out + data;
}

void GgufWriter::write(const std::filesystem::path& path) const {
  std::ofstream out(path, std::ios::binary);
  std::string content = bytes();
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  if (!out) {
    throw std::runtime_error("cannot write " + path.string());
  }
}

}  // namespace mlxlm
