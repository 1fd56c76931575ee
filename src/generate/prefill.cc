#include "generate/prefill.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "generate/interruption.h"
#include "generate/options.h"

namespace mlxlm {

mx::array token_array(const std::vector<int>& tokens) {
  return mx::array(tokens.data(), {static_cast<int>(tokens.size())}, mx::int32);
}

mx::array token_row(const std::vector<int>& tokens) {
  return mx::expand_dims(token_array(tokens), 0);
}

mx::array forward_part(Model& model,
                       const PromptCache& cache,
                       const Prompt& prompt,
                       int first,
                       int count) {
  std::vector<int> tokens(static_cast<std::size_t>(count), 0);
  if (!prompt.tokens.empty()) {
    std::copy_n(prompt.tokens.begin() + first, count, tokens.begin());
  }
  if (!prompt.embeddings) {
    return model.forward(token_row(tokens), cache);
  }
  const mx::array& all = *prompt.embeddings;
  auto part = mx::slice(all, {first, 0}, {first + count, all.shape(1)});
  return model.forward(token_row(tokens), cache, mx::expand_dims(part, 0));
}

void apply_quantization(PromptCache& cache, const GenerateOptions& options) {
  if (auto quantization = kv_quantization(options)) {
    quantize_prompt_cache(cache, options.quantized_kv_start, *quantization);
  }
}

int tokens_to_checkpoint(int done, const GenerateOptions& options) {
  int tokens = options.prefill_step_tokens;
  for (int position : options.prompt_checkpoints) {
    tokens = position > done ? std::min(tokens, position - done) : tokens;
  }
  return tokens;
}

void prefill(Model& model,
             PromptCache& cache,
             const Prompt& prompt,
             const GenerateOptions& options,
             const std::function<void(int)>& progress) {
  auto read = [&](int first, int count) {
    forward_part(model, cache, prompt, first, count);
  };
  prefill(read, cache, prompt, options, progress);
}

void prefill(const ReadPart& read,
             PromptCache& cache,
             const Prompt& prompt,
             const GenerateOptions& options,
             const std::function<void(int)>& progress) {
  int done = 0;
  progress(0);
  while (prompt.length - done > 1) {
    check_interruption(options);
    int count =
        std::min(tokens_to_checkpoint(done, options), prompt.length - done - 1);
    read(done, count);
    apply_quantization(cache, options);
    evaluate_prompt_cache(cache);
    done += count;
    progress(done);
    mx::clear_cache();
  }
  check_interruption(options);
}

}  // namespace mlxlm
