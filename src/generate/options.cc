#include "generate/options.h"

#include <algorithm>
#include <climits>
#include <cstdint>
#include <sstream>
#include <string>

#include <mlx/mlx.h>

#include "cache/attention_cache.h"
#include "core/log.h"
#include "generate/memory_estimate.h"
#include "load/memory.h"

namespace mlxlm {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::argument, message);
}

void check_embeddings(const std::vector<int>& prompt,
                      const GenerateOptions& options) {
  const mx::array& embeddings = *options.input_embeddings;
  if (embeddings.ndim() != 2 || embeddings.shape(0) == 0) {
    std::ostringstream message;
    message << "input embeddings have shape " << embeddings.shape()
            << "; they must be [tokens, width]";
    refuse(message.str());
  }
  if (!prompt.empty() &&
      prompt.size() != static_cast<std::size_t>(embeddings.shape(0))) {
    refuse("there are " + std::to_string(embeddings.shape(0)) +
           " input embeddings for a prompt of " +
           std::to_string(prompt.size()) +
           " tokens; the numbers must be equal, or the prompt empty");
  }
}

void check_tokens(const std::vector<int>& tokens, int vocabulary_size) {
  for (int token : tokens) {
    if (token < 0 || token >= vocabulary_size) {
      refuse("the prompt has token " + std::to_string(token) +
             ", outside the model's vocabulary of " +
             std::to_string(vocabulary_size));
    }
  }
}

void check_stops(const GenerateOptions& options) {
  for (const std::string& text : options.stop_texts) {
    bool continues = !text.empty() && (text[0] & 0xc0) == 0x80;
    if (text.empty() || continues) {
      refuse("a stop text is empty or begins inside a character");
    }
  }
  for (const auto& sequence : options.stop_sequences) {
    if (sequence.empty()) {
      refuse("a stop sequence is empty");
    }
  }
}

// Shorter prompts are let through unexamined, so that they start at once.
constexpr int kLongPromptTokens = 2048;

void check_memory(Model& model,
                  int num_tokens,
                  const PromptCache& cache,
                  const GenerateOptions& options) {
  if (num_tokens < kLongPromptTokens) {
    return;
  }
  std::uint64_t needed = CacheEstimate(model, options).bytes(num_tokens);
  needed -= std::min<std::uint64_t>(needed, prompt_cache_nbytes(cache));
  require_memory(needed,
                 "the KV cache of " + std::to_string(num_tokens) + " tokens",
                 "use a shorter prompt, kv-bits or max-kv-size");
}

}  // namespace

void check_at_least(const char* option, int value, int least) {
  if (value < least) {
    refuse(std::string(option) + " is " + std::to_string(value) +
           "; it must be at least " + std::to_string(least));
  }
}

void check_options(const std::vector<int>& prompt,
                   const Model& model,
                   const GenerateOptions& options) {
  if (options.input_embeddings) {
    check_embeddings(prompt, options);
  } else if (prompt.empty()) {
    refuse("the prompt is empty; it needs at least one token");
  }
  if (prompt.size() > INT_MAX / 4) {
    refuse("the prompt has more tokens than positions can count");
  }
  check_tokens(prompt, model.vocabulary_size());
  check_at_least("max_tokens", options.max_tokens, -1);
  check_at_least("max_kv_size", options.max_kv_size, 0);
  check_at_least("prefill_step_tokens", options.prefill_step_tokens, 1);
  check_at_least("quantized_kv_start", options.quantized_kv_start, 0);
  kv_quantization(options);
  check_stops(options);
}

void check_no_prefix_store(const GenerateOptions& options) {
  if (options.prefix_store) {
    throw Error(ErrorKind::unsupported,
                "a prefix store is used by stream_generate(), generate(), "
                "batches and sessions only; elsewhere look up with "
                "PrefixStore::find() and "
                "give what is found as prompt_cache");
  }
}

void check_max_tokens(const GenerateOptions& options) {
  if (options.max_tokens == 0) {
    refuse("max_tokens is 0; it must be positive, or -1 for no limit");
  }
}

std::optional<KvQuantization> kv_quantization(const GenerateOptions& options) {
  auto key_bits = options.kv_key_bits ? options.kv_key_bits : options.kv_bits;
  auto value_bits =
      options.kv_value_bits ? options.kv_value_bits : options.kv_bits;
  if (!key_bits && !value_bits) {
    return std::nullopt;
  }
  if (!key_bits || !value_bits) {
    refuse(std::string("there are ") +
           (key_bits ? "kv_key_bits" : "kv_value_bits") + " but no " +
           (key_bits ? "kv_value_bits" : "kv_key_bits") +
           "; give both, or kv_bits for what has none of its own");
  }
  KvQuantization quantization{*key_bits, *value_bits, options.kv_group_size};
  empty_rows(quantization);  // throws where MLX has no such format
  return quantization;
}

int prompt_length(const std::vector<int>& prompt,
                  const GenerateOptions& options) {
  return options.input_embeddings ? options.input_embeddings->shape(0)
                                  : static_cast<int>(prompt.size());
}

PromptCache& usable_cache(PromptCache fresh,
                          const GenerateOptions& options,
                          PromptCache& own) {
  if (options.prompt_cache == nullptr) {
    own = std::move(fresh);
    return own;
  }
  PromptCache& given = *options.prompt_cache;
  if (given.empty()) {
    given = std::move(fresh);
    return given;
  }
  if (given.size() != fresh.size() || std::ranges::count(given, nullptr) > 0) {
    refuse("the prompt cache has " + std::to_string(given.size()) +
           " layers where the model has " + std::to_string(fresh.size()) +
           "; it was made by another model");
  }
  return given;
}

void check_quantization(const PromptCache& cache,
                        int num_prompt_tokens,
                        const GenerateOptions& options) {
  auto quantization = kv_quantization(options);
  if (!quantization) {
    return;
  }
  std::int64_t most = options.max_tokens < 0 ? INT64_MAX
                                             : std::int64_t{num_prompt_tokens} +
                                                   options.max_tokens;
  for (const auto& layer : cache) {
    bool reached = options.max_tokens < 0 ||
                   layer->offset() + most >= options.quantized_kv_start;
    if (reached) {
      layer->to_quantized(*quantization);
    }
  }
}

void warn_of_length(const Model& model, std::int64_t num_tokens) {
  int context = model.context_tokens();
  if (context > 0 && num_tokens > context) {
    log_warning("the prompt has " + std::to_string(num_tokens) +
                " tokens, more than the " + std::to_string(context) +
                " that the model was made for; the answer may be poor");
  }
}

void check_length(Model& model,
                  int num_prompt_tokens,
                  const PromptCache& cache,
                  const GenerateOptions& options) {
  std::int64_t total =
      std::int64_t{num_prompt_tokens} + prompt_cache_offset(cache);
  warn_of_length(model, total);
  check_memory(model, static_cast<int>(total), cache, options);
}

}  // namespace mlxlm
