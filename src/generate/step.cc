// generate_step: one token after the other.
#include <mlx/mlx.h>

#include <mlxlm/generate.h>

#include "generate/interruption.h"
#include "generate/options.h"
#include "generate/prefill.h"
#include "generate/sampling.h"
#include "generate/under_way.h"

namespace mlxlm {
namespace {

class StepGenerator : public TokenGenerator {
 public:
  StepGenerator(Prompt prompt, ModelPtr model, const GenerateOptions& options)
      : prompt_(std::move(prompt)),
        model_(std::move(model)),
        options_(options),
        cache_(usable_cache(
            model_->make_cache(options_.max_kv_size), options_, own_cache_)),
        sampling_(options_) {
    check_quantization(cache_, prompt_.length, options_);
    check_length(*model_, prompt_.length, cache_, options_);
  }

  std::optional<StepResult> next() override {
    if (std::exchange(done_, true)) {
      return std::nullopt;  // finished, or failed before
    }
    check_interruption(options_);
    under_way_.go_on_here();
    if (!pending_) {
      read_prompt();
    }
    bool last = num_tokens_ == options_.max_tokens;
    // The next step is under way before this one's token is waited for.
    std::optional<Sampled> following;
    if (!last) {
      following = step(pending_->token);
    }
    if (num_tokens_ == 0) {
      pending_->token.eval();
      report(prompt_.length);
    }
    if (last) {
      return std::nullopt;
    }
    StepResult result{pending_->token.item<int>(), pending_->logprobs};
    if (num_tokens_ % 256 == 0) {
      mx::clear_cache();
    }
    pending_ = std::move(following);
    num_tokens_ = num_tokens_ + 1;
    done_ = false;
    return result;
  }

 private:
  void report(int done_tokens) {
    if (options_.prompt_progress) {
      options_.prompt_progress(done_tokens, prompt_.length);
    }
  }

  void read_prompt() {
    prefill(
        *model_, cache_, prompt_, options_, [&](int done) { report(done); });
    sampling_.add_history(prompt_.tokens);
    auto logits = forward_part(*model_, cache_, prompt_, prompt_.length - 1, 1);
    pending_ = sample(logits);
    prompt_.tokens.clear();
    prompt_.embeddings.reset();
  }

  // Reads one token, int32 [1], and draws the one after it.
  Sampled step(const mx::array& token) {
    sampling_.add_history(token);
    return sample(model_->forward(mx::reshape(token, {1, 1}), cache_));
  }

  // Draws from the logits [1, L, V] of the last position.
  Sampled sample(const mx::array& logits) {
    apply_quantization(cache_, options_);
    Sampled sampled = sampling_.draw(last_logits(logits, 1));
    mx::async_eval(sampled.token, sampled.logprobs);
    return sampled;
  }

  Prompt prompt_;
  ModelPtr model_;
  GenerateOptions options_;
  PromptCache own_cache_;
  PromptCache& cache_;
  Sampling sampling_;
  std::optional<Sampled> pending_;
  std::int64_t num_tokens_ = 0;
  bool done_ = false;
  StepsUnderWay under_way_;  // the last member: ends first
};

}  // namespace

std::unique_ptr<TokenGenerator> generate_step(const std::vector<int>& prompt,
                                              ModelPtr model,
                                              const GenerateOptions& options) {
  check_options(prompt, *model, options);
  check_no_prefix_store(options);
  return std::make_unique<StepGenerator>(
      Prompt{prompt, options.input_embeddings, prompt_length(prompt, options)},
      std::move(model),
      options);
}

}  // namespace mlxlm
