// Quantization of keys and values: options shared by the commands.
#pragma once

#include <optional>

#include <CLI/CLI.hpp>

#include <mlxlm/generate.h>

namespace mlxlm::cli {

class KvOptions {
 public:
  // `start`: tokens before quantization begins, unless the option says.
  explicit KvOptions(int start = 5000) : start_(start) {}

  void add_to(CLI::App& command, const char* group);

  void apply_to(GenerateOptions& options) const;

  // Throws Error{argument} if layers of a saved cache are quantized otherwise.
  void check_saved(const PromptCache& cache) const;

 private:
  std::optional<int> bits_;
  std::optional<int> key_bits_;
  std::optional<int> value_bits_;
  int group_size_ = 64;
  int start_;
};

}  // namespace mlxlm::cli
