#include "cli/cache_options.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/several_ranks.h"
#include "core/common_length.h"
#include "core/json.h"

namespace mlxlm::cli {
namespace {

// The reference notes the tokenizer's options as JSON.
std::string eos_token_of(const CacheMetadata& metadata) {
  auto found = metadata.find("tokenizer_config");
  if (found == metadata.end() || found->second.empty()) {
    return "";
  }
  nlohmann::json config =
      parse_json(found->second, "tokenizer_config of the prompt cache");
  auto token = config.is_object() ? config.find("eos_token") : config.end();
  return token != config.end() && token->is_string() ? token->get<std::string>()
                                                     : "";
}

constexpr char kContinue[] = "continue";
constexpr char kPrefix[] = "prefix";
constexpr char kGroup[] = "Cache";

}  // namespace

void CacheOptions::add_to(CLI::App& command) {
  command
      .add_option("--max-kv-size",
                  max_kv_size_,
                  "Keep this many tokens at most, dropping old ones")
      ->type_name("N")
      ->group(kGroup);
  command
      .add_option("--prefill-step-size",
                  prefill_step_tokens_,
                  "Prompt tokens read at a time; fewer need less\nmemory")
      ->capture_default_str()
      ->type_name("N")
      ->group(kGroup);
  kv_.add_to(command, kGroup);
}

void CacheOptions::add_saved_to(CLI::App& command) {
  command
      .add_option("--prompt-cache-file",
                  prompt_cache_file_,
                  "Begin with a saved prompt cache")
      ->type_name("FILE")
      ->group(kGroup);
  command
      .add_option("--prompt-cache-mode",
                  prompt_cache_mode_,
                  "continue: the prompt follows the cached text;\n"
                  "prefix: the prompt is whole, and what the cache\n"
                  "has of its beginning isn't read again")
      ->capture_default_str()
      ->type_name("MODE")
      ->group(kGroup);
}

void SavedCache::check(const LoadedModel& loaded) {
  check_saved_cache(
      path, cache, metadata, *loaded.model, loaded.tokenizer.get());
}

std::vector<int> SavedCache::rest_of(const std::vector<int>& prompt) {
  if (!prompt_is_whole || prompt.empty()) {
    return prompt;
  }
  auto origin = origin_in(metadata);
  if (!origin || !origin->tokens) {
    throw Error(ErrorKind::argument,
                path +
                    " doesn't say which tokens it has read, which "
                    "--prompt-cache-mode prefix needs; make it again with "
                    "mlx-lm cache-prompt");
  }
  const std::vector<int>& held = *origin->tokens;
  int num_held = static_cast<int>(held.size());
  int offset = prompt_cache_offset(cache);
  if (offset != 0 && offset != num_held) {
    throw Error(ErrorKind::format,
                path + " names " + std::to_string(num_held) +
                    " tokens, but its layers have read " +
                    std::to_string(offset));
  }
  // The last token is read in any case: it gives the next one.
  auto last = prompt.end() - 1;
  int common = common_length({prompt.begin(), last}, held);
  int reused = common;
  std::string reason;
  if (common < num_held &&
      trim_prompt_cache(cache, num_held - common) < num_held - common) {
    reason = " (the first " + std::to_string(common) +
             " are the same, but the cache can't go back to them: " +
             describe_layers(cache) + ")";
    reused = 0;
    cache.clear();
  }
  print_note("of the prompt's " + std::to_string(prompt.size()) + " tokens " +
             std::to_string(reused) + " are cached; reading from token " +
             std::to_string(reused + 1) + " on" + reason);
  return {prompt.begin() + reused, prompt.end()};
}

std::optional<SavedCache> CacheOptions::load_saved(
    const std::string& model) const {
  if (prompt_cache_mode_ != kContinue && prompt_cache_mode_ != kPrefix) {
    throw UsageError("--prompt-cache-mode is continue or prefix, not " +
                     prompt_cache_mode_);
  }
  if (prompt_cache_file_.empty()) {
    return std::nullopt;
  }
  require_one_rank("--prompt-cache-file",
                   "a saved cache has the keys of all heads");
  auto [cache, metadata] = load_prompt_cache(prompt_cache_file_);
  if (cache.empty()) {
    throw Error(ErrorKind::format, prompt_cache_file_ + " holds no cache");
  }
  kv_.check_saved(cache);
  std::string made_with;
  if (auto noted = metadata.find("model"); noted != metadata.end()) {
    made_with = noted->second;
  }
  bool verifiable = origin_in(metadata).has_value();
  SavedCache saved{.path = prompt_cache_file_,
                   .cache = std::move(cache),
                   .metadata = metadata,
                   .model = model,
                   .eos_token = eos_token_of(metadata),
                   .prompt_is_whole = prompt_cache_mode_ == kPrefix};
  if (made_with.empty()) {
    if (model.empty()) {
      throw Error(ErrorKind::argument,
                  prompt_cache_file_ +
                      " doesn't say which model made it: name it with --model");
    }
    return saved;
  }
  // A verifiable file is held to the model itself, whatever its name.
  if (!model.empty() && !verifiable && model != made_with) {
    throw Error(ErrorKind::argument,
                "--model is " + model + ", but the prompt cache " +
                    prompt_cache_file_ + " was made with " + made_with);
  }
  saved.model = model.empty() ? made_with : model;
  return saved;
}

void CacheOptions::apply_to(GenerateOptions& options) const {
  if (max_kv_size_) {
    check_at_least("--max-kv-size", *max_kv_size_, 1);
    options.max_kv_size = *max_kv_size_;
  }
  options.prefill_step_tokens = prefill_step_tokens_;
  kv_.apply_to(options);
}

}  // namespace mlxlm::cli
