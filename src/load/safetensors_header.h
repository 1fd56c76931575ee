// The header of a safetensors file, checked before anything else reads it.
//
// Rules: those of the reference parser (the Rust crate `safetensors`): at most
// 100 MB of JSON, every tensor's bytes = its dtype times its shape, tensors
// one after the other from 0 to the end of the file without holes; besides, no
// key twice.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mlxlm {

struct SafetensorsTensor {
  std::string name;
  std::string dtype;                 // as in the file, e.g. "BF16"
  std::vector<std::uint64_t> shape;  // each fits an int
  std::uint64_t begin = 0;           // bytes from the end of the header
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
  std::uint64_t data_start = 0;  // bytes from the start of the file
  std::uint64_t data_bytes = 0;
};

// Throws Error{file} if the file can't be read, Error{format} naming the file,
// the tensor and the numbers if it breaks a rule.
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

// The same for a header in memory; `data_bytes` follow it in the file.
SafetensorsHeader parse_safetensors_header(std::string_view header,
                                           std::uint64_t data_bytes,
                                           const std::string& file);

}  // namespace mlxlm
