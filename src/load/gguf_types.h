// The tensor types of GGUF files and how they are stored.
#pragma once

#include <cstdint>
#include <string_view>

namespace mlxlm {

// `block_bytes` for each `block_elements` values of a row.
struct GgufType {
  std::uint32_t id;
  std::string_view name;  // as in GGUF, e.g. "Q4_K"
  std::uint32_t block_elements;
  std::uint32_t block_bytes;
};

// None if the number stands for no type whose size is known.
const GgufType* find_gguf_type(std::uint32_t id);

}  // namespace mlxlm
