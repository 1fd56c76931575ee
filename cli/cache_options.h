// The key-value cache: its limits, quantization, and a saved one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <mlxlm/generate.h>

#include "cli/kv_options.h"

namespace mlxlm::cli {

// A prompt cache from a file, with what its maker noted.
struct SavedCache {
  std::string path;
  PromptCache cache;
  CacheMetadata metadata;
  std::string model;      // it was made with
  std::string eos_token;  // empty: none
  // The prompt is whole and begins with what the cache has read; otherwise it
  // continues that.
  bool prompt_is_whole = false;

  // Throws Error{argument} if the cache is another model's.
  void check(const LoadedModel& loaded);

  // Of a whole prompt, the part that is still to be read; the cache is cut to
  // what both have in common, and standard error says where that ends. At
  // least one token is left.
  std::vector<int> rest_of(const std::vector<int>& prompt);
};

class CacheOptions {
 public:
  // Limits and quantization.
  void add_to(CLI::App& command);
  // A saved cache to begin with.
  void add_saved_to(CLI::App& command);

  // The file of --prompt-cache-file, if given. `model` is the one that was
  // asked for, "" for none. Throws Error{argument} if the file doesn't fit the
  // options.
  std::optional<SavedCache> load_saved(const std::string& model) const;

  void apply_to(GenerateOptions& options) const;

 private:
  std::optional<int> max_kv_size_;
  int prefill_step_tokens_ = 2048;
  std::string prompt_cache_file_;
  std::string prompt_cache_mode_ = "continue";
  KvOptions kv_;
};

}  // namespace mlxlm::cli
