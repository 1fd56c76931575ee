// stream_generate: parts of text with statistics.
#include <algorithm>

#include <mlx/mlx.h>

#include <mlxlm/generate.h>

#include "generate/interruption.h"
#include "generate/options.h"
#include "generate/text_pipe.h"

namespace mlxlm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double rate(int count, double seconds) {
  return seconds > 0 ? count / seconds : 0;
}

std::vector<int> end_tokens(const Model& model,
                            const Tokenizer* tokenizer,
                            const GenerateOptions& options) {
  if (options.ignore_eos) {
    return {};
  }
  return tokenizer != nullptr ? tokenizer->eos_token_ids()
                              : model.eos_token_ids();
}

std::unique_ptr<TokenGenerator> make_generator(const std::vector<int>& prompt,
                                               const ModelPtr& model,
                                               const GenerateOptions& options) {
  if (options.draft_model) {
    return speculative_generate_step(
        prompt, model, options.draft_model, options);
  }
  return generate_step(prompt, model, options);
}

}  // namespace

class GenerationStream::Impl {
 public:
  Impl(ModelPtr model,
       TokenizerPtr tokenizer,
       const std::vector<int>& prompt,
       const GenerateOptions& options)
      : model_(std::move(model)),
        tokenizer_(std::move(tokenizer)),
        options_(options),
        end_tokens_(end_tokens(*model_, tokenizer_.get(), options)),
        text_(tokenizer_.get(), options),
        generator_(make_generator(prompt, model_, options)) {
    part_.prompt_tokens = prompt_length(prompt, options);
    part_.token = kNoToken;
  }

  std::optional<GenerationResponse> next() {
    if (std::exchange(ended_, true)) {
      return std::nullopt;
    }
    if (part_.generation_tokens == 0) {
      wired_limit_ = std::make_unique<WiredLimit>(*model_);
      start_ = Clock::now();
    }
    std::optional<StepResult> step;
    try {
      step = generator_->next();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::cancelled) {
        throw;
      }
      forget_token();
      return end(interruption_of(options_));
    }
    if (!step) {
      forget_token();
      return end("length");
    }
    take(*step);
    if (std::ranges::count(end_tokens_, part_.token) > 0) {
      return end("stop");
    }
    part_.text = text_.add(part_.token);
    if (text_.stopped()) {
      return end("stop");
    }
    if (part_.generation_tokens == options_.max_tokens) {
      return end("length");
    }
    ended_ = false;
    return part_;
  }

 private:
  static constexpr int kNoToken = -1;

  void take(StepResult& step) {
    if (part_.generation_tokens == 0) {
      part_.prompt_tps = rate(part_.prompt_tokens, seconds_since(start_));
      start_ = Clock::now();
    }
    ++part_.generation_tokens;
    part_.token = step.token;
    part_.logprobs = std::move(step.logprobs);
    part_.from_draft = step.from_draft;
    part_.text.clear();
    measure();
  }

  // For a last part that brings none.
  void forget_token() {
    part_.token = kNoToken;
    part_.logprobs.reset();
    part_.text.clear();
  }

  void measure() {
    part_.generation_tps = rate(part_.generation_tokens, seconds_since(start_));
    part_.peak_memory_gb = static_cast<double>(mx::get_peak_memory()) / 1e9;
  }

  // The last part, with the text that was held back.
  GenerationResponse end(std::string reason) {
    part_.text += text_.finish();
    part_.finish_reason = text_.stopped() ? "stop" : std::move(reason);
    if (part_.generation_tokens > 0) {
      measure();
    }
    generator_.reset();
    wired_limit_.reset();
    return part_;
  }

  ModelPtr model_;
  TokenizerPtr tokenizer_;
  GenerateOptions options_;
  std::vector<int> end_tokens_;
  TextPipe text_;
  // In this order: the limit outlives the work.
  std::unique_ptr<WiredLimit> wired_limit_;
  std::unique_ptr<TokenGenerator> generator_;
  GenerationResponse part_;
  Clock::time_point start_;
  bool ended_ = false;
};

GenerationStream::GenerationStream(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
GenerationStream::GenerationStream(GenerationStream&&) noexcept = default;
GenerationStream& GenerationStream::operator=(GenerationStream&&) noexcept =
    default;
GenerationStream::~GenerationStream() = default;

std::optional<GenerationResponse> GenerationStream::next() {
  return impl_->next();
}

GenerationStream stream_generate(ModelPtr model,
                                 TokenizerPtr tokenizer,
                                 const std::vector<int>& prompt,
                                 const GenerateOptions& options) {
  if (options.max_tokens == 0) {
    throw Error(ErrorKind::argument,
                "max_tokens is 0; it must be positive, or -1 for no limit");
  }
  return GenerationStream(std::make_unique<GenerationStream::Impl>(
      std::move(model), std::move(tokenizer), prompt, options));
}

GenerationStream stream_generate(ModelPtr model,
                                 TokenizerPtr tokenizer,
                                 const std::string& prompt,
                                 const GenerateOptions& options) {
  if (!tokenizer) {
    throw Error(ErrorKind::argument,
                "a prompt of text needs a tokenizer; without one pass token "
                "ids");
  }
  std::string bos = tokenizer->bos_token();
  bool add_special_tokens = bos.empty() || !prompt.starts_with(bos);
  auto tokens = tokenizer->encode(prompt, add_special_tokens);
  return stream_generate(
      std::move(model), std::move(tokenizer), tokens, options);
}

GenerationResponse stream_generate(
    ModelPtr model,
    TokenizerPtr tokenizer,
    const std::string& prompt,
    const GenerateOptions& options,
    const std::function<bool(const GenerationResponse&)>& on_part) {
  auto stream =
      stream_generate(std::move(model), std::move(tokenizer), prompt, options);
  GenerationResponse last;
  while (auto part = stream.next()) {
    last = std::move(*part);
    if (!on_part(last) && last.finish_reason.empty()) {
      last.finish_reason = "cancelled";
      break;
    }
  }
  return last;
}

}  // namespace mlxlm
