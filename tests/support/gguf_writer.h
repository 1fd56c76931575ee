// Writes GGUF files for tests, right ones and broken ones.
//
//   GgufWriter writer;
//   writer.add("general.architecture", "llama").add("llama.block_count", 2u);
//   writer.add_tensor("output_norm.weight", {8}, std::vector<float>(8));
//   writer.write(folder / "model.gguf");
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mlxlm {

class GgufWriter {
 public:
  // The value's C++ type picks the type in the file.
  GgufWriter& add(std::string_view key, const char* value);
  GgufWriter& add(std::string_view key, std::string_view value);
  GgufWriter& add(std::string_view key, bool value);
  GgufWriter& add(std::string_view key, std::uint32_t value);
  GgufWriter& add(std::string_view key, std::int32_t value);
  GgufWriter& add(std::string_view key, std::uint64_t value);
  GgufWriter& add(std::string_view key, float value);
  GgufWriter& add(std::string_view key, double value);
  GgufWriter& add(std::string_view key, const std::vector<std::string>& value);
  GgufWriter& add(std::string_view key, const std::vector<std::int32_t>& value);
  GgufWriter& add(std::string_view key, const std::vector<float>& value);
  GgufWriter& add(std::string_view key, const std::vector<bool>& value);
  // Bytes as they stand, after the type number.
  GgufWriter& add_raw(std::string_view key,
                      std::uint32_t type,
                      std::string_view bytes);

  // `shape`: outermost dimension first, as in MLX. `type`: its number.
  GgufWriter& add_tensor(std::string_view name,
                         const std::vector<std::uint64_t>& shape,
                         std::uint32_t type,
                         std::string_view data);
  GgufWriter& add_tensor(std::string_view name,
                         const std::vector<std::uint64_t>& shape,
                         const std::vector<float>& values);

  // What a right file would not have.
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  std::optional<std::uint64_t> num_tensors;
  std::optional<std::uint64_t> num_entries;
  // Of the tensor last added.
  GgufWriter& set_offset(std::uint64_t offset);

  std::string bytes() const;
  void write(const std::filesystem::path& path) const;

 private:
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> shape;
    std::uint32_t type;
    std::string data;
    std::optional<std::uint64_t> offset;
  };

  std::string entries_;
  std::uint64_t entry_count_ = 0;
  std::vector<Tensor> tensors_;
};

// The bytes of a value as they lie in memory, and of a string with its length.
template <typename T>
std::string raw_bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}
std::string gguf_string(std::string_view text);

}  // namespace mlxlm
