// The key-value cache: its limits, quantization, and a saved one.
#pragma once

#include <optional>
#include <string>

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>

#include <mlxlm/generate.h>

namespace mlxlm::cli {

// A prompt cache from a file, with what its maker noted.
struct SavedCache {
  PromptCache cache;
  std::string model;      // it was made with
  std::string eos_token;  // empty: none
};

class CacheOptions {
 public:
  void add_to(CLI::App& command);

  // The file of --prompt-cache-file, if given. `model` is the one that was
  // asked for, "" for none. Throws Error{argument} if the file doesn't fit the
  // options.
  std::optional<SavedCache> load_saved(const std::string& model) const;

  void apply_to(GenerateOptions& options) const;

 private:
  std::optional<int> max_kv_size_;
  int prefill_step_tokens_ = 2048;
  std::string prompt_cache_file_;
  std::optional<int> kv_bits_;
  int kv_group_size_ = 64;
  int quantized_kv_start_ = 5000;
};

}  // namespace mlxlm::cli
