#include "generate/answer.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "generate/rate.h"

namespace mlxlm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kNoToken = -1;

std::vector<int> end_tokens(const Model& model,
                            const Tokenizer* tokenizer,
                            const GenerateOptions& options) {
  if (options.ignore_eos) {
    return {};
  }
  return tokenizer != nullptr ? tokenizer->eos_token_ids()
                              : model.eos_token_ids();
}

}  // namespace

Answer::Answer(const Model& model,
               const Tokenizer* tokenizer,
               const GenerateOptions& options,
               int prompt_tokens)
    : end_tokens_(end_tokens(model, tokenizer, options)),
      max_tokens_(options.max_tokens),
      text_(tokenizer, options) {
  part_.prompt_tokens = prompt_tokens;
  part_.token = kNoToken;
}

void Answer::reuse(int num_tokens, const std::string& reason) {
  part_.reused_tokens = num_tokens;
  part_.reuse_reason = reason;
}

void Answer::begin() { start_ = Clock::now(); }

GenerationResponse Answer::add(StepResult step) {
  take(std::move(step));
  if (std::ranges::count(end_tokens_, part_.token) > 0) {
    return finish("stop");
  }
  part_.text = text_.add(part_.token);
  if (text_.stopped()) {
    return finish("stop");
  }
  if (part_.generation_tokens == max_tokens_) {
    return finish("length");
  }
  return part_;
}

GenerationResponse Answer::end(const std::string& reason) {
  part_.token = kNoToken;
  part_.logprobs.reset();
  part_.text.clear();
  return finish(reason);
}

void Answer::take(StepResult step) {
  if (part_.generation_tokens == 0) {
    part_.prompt_tps =
        rate(part_.prompt_tokens - part_.reused_tokens, seconds_since(start_));
    start_ = Clock::now();
  }
  ++part_.generation_tokens;
  part_.token = step.token;
  part_.logprobs = std::move(step.logprobs);
  part_.from_draft = step.from_draft;
  part_.text.clear();
  measure();
}

void Answer::measure() {
  part_.generation_tps = rate(part_.generation_tokens, seconds_since(start_));
  part_.peak_memory_gb = static_cast<double>(mx::get_peak_memory()) / 1e9;
}

GenerationResponse Answer::finish(const std::string& reason) {
  ended_ = true;
  part_.text += text_.finish();
  part_.finish_reason = text_.stopped() ? "stop" : reason;
  if (part_.generation_tokens > 0) {
    measure();
  }
  return part_;
}

}  // namespace mlxlm
