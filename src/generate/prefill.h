// Reading a prompt into the caches, chunk by chunk.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

// Tokens as an array, int32 [L], and as a model takes them, [1, L].
mx::array token_array(const std::vector<int>& tokens);
mx::array token_row(const std::vector<int>& tokens);

// The prompt that is still to be read.
struct Prompt {
  std::vector<int> tokens;              // may be empty with embeddings
  std::optional<mx::array> embeddings;  // [L, D]
  int length = 0;
};

// forward() of `count` tokens from `first` of the prompt.
mx::array forward_part(Model& model,
                       const PromptCache& cache,
                       const Prompt& prompt,
                       int first,
                       int count);

// quantize_prompt_cache() as the options say.
void apply_quantization(PromptCache& cache, const GenerateOptions& options);

// Of a prompt, how many tokens to read after `done`, at most, to pause at
// checkpoints.
int tokens_to_checkpoint(int done, const GenerateOptions& options);

// Reads all but the last token, in parts of `count` tokens from `first` of the
// prompt. `progress` is called with the number of tokens read: at the start and
// after each part, which end at checkpoints, too. Throws Error{cancelled}
// between parts.
using ReadPart = std::function<void(int first, int count)>;
void prefill(const ReadPart& read,
             PromptCache& cache,
             const Prompt& prompt,
             const GenerateOptions& options,
             const std::function<void(int done_tokens)>& progress);

// The same with forward_part().
void prefill(Model& model,
             PromptCache& cache,
             const Prompt& prompt,
             const GenerateOptions& options,
             const std::function<void(int done_tokens)>& progress);

}  // namespace mlxlm
