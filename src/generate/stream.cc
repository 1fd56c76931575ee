// stream_generate: parts of text with statistics.
#include <mlxlm/generate.h>

#include "generate/answer.h"
#include "generate/drafter.h"
#include "generate/generation_stream.h"
#include "generate/interruption.h"
#include "generate/options.h"
#include "generate/prefix_reuse.h"

namespace mlxlm {
namespace {

std::unique_ptr<TokenGenerator> make_generator(const std::vector<int>& prompt,
                                               const ModelPtr& model,
                                               const GenerateOptions& options) {
  if (draft_kind(*model, options) == DraftKind::none) {
    return generate_step(prompt, model, options);
  }
  return speculative_generate_step(prompt, model, options.draft_model, options);
}

class ModelStream : public GenerationStream::Impl {
 public:
  ModelStream(ModelPtr model,
              TokenizerPtr tokenizer,
              const std::vector<int>& prompt,
              const GenerateOptions& options)
      : model_(std::move(model)),
        tokenizer_(std::move(tokenizer)),
        options_(options),
        answer_(
            *model_, tokenizer_.get(), options, prompt_length(prompt, options)),
        reuse_(model_, prompt, options),
        generator_(
            make_generator(reuse_.rest(), model_, reuse_.options_for_rest())) {
    answer_.reuse(reuse_.reused_tokens(), reuse_.reason());
  }

  // Also where the caller has heard enough.
  ~ModelStream() override { finish(); }
  ModelStream(const ModelStream&) = delete;
  ModelStream& operator=(const ModelStream&) = delete;

  std::optional<GenerationResponse> next() override {
    if (std::exchange(ended_, true)) {
      return std::nullopt;
    }
    if (!wired_limit_) {
      wired_limit_ = std::make_unique<WiredLimit>(*model_);
      answer_.begin();
    }
    GenerationResponse part = next_part();
    ended_ = answer_.ended();
    if (ended_) {
      if (auto* speculation = generator_->speculation()) {
        part.speculation = *speculation;
      }
      finish();
    }
    return part;
  }

 private:
  GenerationResponse next_part() {
    try {
      auto step = generator_->next();
      if (!step) {
        return answer_.end("length");
      }
      reuse_.add(step->token);
      return answer_.add(std::move(*step));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::cancelled) {
        generator_.reset();
        throw;
      }
      return answer_.end(interruption_of(options_));
    } catch (...) {  // of a sampler or callback: nothing is kept
      generator_.reset();
      throw;
    }
  }

  void finish() {
    if (generator_) {
      generator_.reset();
      reuse_.keep();
    }
    wired_limit_.reset();
  }

  ModelPtr model_;
  TokenizerPtr tokenizer_;
  GenerateOptions options_;
  Answer answer_;
  PrefixReuse reuse_;
  // In this order: the limit outlives the work.
  std::unique_ptr<WiredLimit> wired_limit_;
  std::unique_ptr<TokenGenerator> generator_;
  bool ended_ = false;
};

}  // namespace

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
  check_max_tokens(options);
  return GenerationStream(std::make_unique<ModelStream>(
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
