#include "cli/cache_options.h"

#include <cstddef>
#include <utility>
#include <variant>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

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

// A number in the state of a cache, if there is one.
std::optional<int> number_at(const CacheState& state, std::size_t index) {
  const auto* list = std::get_if<CacheState::List>(&state.value);
  if (list == nullptr || index >= list->size()) {
    return std::nullopt;
  }
  const int* number = std::get_if<int>(&(*list)[index].value);
  return number != nullptr ? std::optional<int>(*number) : std::nullopt;
}

void check_equal(const char* option, int wanted, std::optional<int> held) {
  if (held && *held != wanted) {
    throw Error(ErrorKind::argument,
                std::string(option) + " is " + std::to_string(wanted) +
                    ", but the cache in --prompt-cache-file has " +
                    std::to_string(*held));
  }
}

// The state of a QuantizedKVCache: keys, values, offset, group size, bits.
void check_quantization(const Cache& cache,
                        std::optional<int> bits,
                        int group_size) {
  if (cache.kind() != "QuantizedKVCache") {
    return;
  }
  CacheState state = cache.state();
  check_equal("--kv-group-size", group_size, number_at(state, 3));
  if (bits) {
    check_equal("--kv-bits", *bits, number_at(state, 4));
  }
}

}  // namespace

void CacheOptions::add_to(CLI::App& command) {
  constexpr char kGroup[] = "Cache";
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
  command
      .add_option("--prompt-cache-file",
                  prompt_cache_file_,
                  "Continue from a saved prompt cache")
      ->type_name("FILE")
      ->group(kGroup);
  command
      .add_option("--kv-bits", kv_bits_, "Quantize keys and values to N bits")
      ->type_name("N")
      ->group(kGroup);
  command
      .add_option("--kv-group-size", kv_group_size_, "Group size of --kv-bits")
      ->capture_default_str()
      ->type_name("N")
      ->group(kGroup);
  command
      .add_option("--quantized-kv-start",
                  quantized_kv_start_,
                  "Tokens before --kv-bits begins")
      ->capture_default_str()
      ->type_name("N")
      ->group(kGroup);
}

std::optional<SavedCache> CacheOptions::load_saved(
    const std::string& model) const {
  if (prompt_cache_file_.empty()) {
    return std::nullopt;
  }
  auto [cache, metadata] = load_prompt_cache(prompt_cache_file_);
  if (cache.empty()) {
    throw Error(ErrorKind::format, prompt_cache_file_ + " holds no cache");
  }
  check_quantization(*cache.front(), kv_bits_, kv_group_size_);
  SavedCache saved{std::move(cache), model, eos_token_of(metadata)};
  auto made_with = metadata.find("model");
  if (made_with == metadata.end()) {
    if (model.empty()) {
      throw Error(ErrorKind::argument,
                  prompt_cache_file_ +
                      " doesn't say which model made it: name it with --model");
    }
    return saved;
  }
  if (!model.empty() && model != made_with->second) {
    throw Error(ErrorKind::argument,
                "--model is " + model + ", but the prompt cache " +
                    prompt_cache_file_ + " was made with " + made_with->second);
  }
  saved.model = made_with->second;
  return saved;
}

void CacheOptions::apply_to(GenerateOptions& options) const {
  if (max_kv_size_) {
    if (*max_kv_size_ < 1) {
      throw Error(ErrorKind::argument,
                  "--max-kv-size must be at least 1, but is " +
                      std::to_string(*max_kv_size_));
    }
    options.max_kv_size = *max_kv_size_;
  }
  options.prefill_step_tokens = prefill_step_tokens_;
  options.kv_bits = kv_bits_;
  options.kv_group_size = kv_group_size_;
  options.quantized_kv_start = quantized_kv_start_;
}

}  // namespace mlxlm::cli
