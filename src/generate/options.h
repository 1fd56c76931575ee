// What is checked before a generation starts.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

// Option values and token ids. Throws Error{argument} naming the option.
void check_options(const std::vector<int>& prompt,
                   const Model& model,
                   const GenerateOptions& options);

// Throws Error{argument} naming the option.
void check_at_least(const char* option, int value, int least);

// Throws Error{unsupported} if there is one.
void check_no_prefix_store(const GenerateOptions& options);

// Throws Error{argument} if max_tokens is 0: nothing could be given out.
void check_max_tokens(const GenerateOptions& options);

// The quantization that the options ask for. Throws Error{argument} for a
// number of bits or a group size that MLX can't quantize to.
std::optional<KvQuantization> kv_quantization(const GenerateOptions& options);

// Tokens of the prompt: of its ids or of the input embeddings.
int prompt_length(const std::vector<int>& prompt,
                  const GenerateOptions& options);

// The prompt cache to use: the caller's, `fresh` if that is empty, or that as
// `own`. Throws Error{argument} if it has another number of layers.
PromptCache& usable_cache(PromptCache fresh,
                          const GenerateOptions& options,
                          PromptCache& own);

// Refuses KV quantization that would begin during this generation and can't,
// because of a layer's sizes. Throws Error{argument}.
void check_quantization(const PromptCache& cache,
                        int num_prompt_tokens,
                        const GenerateOptions& options);

// Warns if a prompt is longer than the model's context.
void warn_of_length(const Model& model, std::int64_t num_tokens);

// The same; throws Error{memory} with the estimate if its keys and values can't
// fit.
void check_length(Model& model,
                  int num_prompt_tokens,
                  const PromptCache& cache,
                  const GenerateOptions& options);

}  // namespace mlxlm
