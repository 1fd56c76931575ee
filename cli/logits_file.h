// A safetensors file with one float32 tensor "logits" [T, V], written row by
// row, so that it never has to fit in memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>

#include <mlx/array.h>

namespace mlxlm::cli {

namespace mx = mlx::core;

class LogitsFile {
 public:
  // Throws Error{file}.
  LogitsFile(const std::filesystem::path& path,
             std::int64_t num_tokens,
             std::int64_t vocabulary_size);

  // rows [n, V], any floating type.
  void append(const mx::array& rows);

  // To be called after the last row.
  void close();

 private:
  void check();

  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace mlxlm::cli
