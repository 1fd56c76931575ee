// speculative_generate_step: a draft model proposes tokens, the model checks
// them all in one pass. What it accepts is what it would have drawn itself, so
// the tokens are those of generate_step.
//
// Unlike the reference, logits processors see the prompt here, too, and caches
// that can't be trimmed are rolled back.
#include <algorithm>
#include <deque>

#include <mlx/mlx.h>

#include <mlxlm/generate.h>

#include "generate/interruption.h"
#include "generate/options.h"
#include "generate/prefill.h"
#include "generate/rewinder.h"
#include "generate/sampling.h"
#include "generate/under_way.h"

namespace mlxlm {
namespace {

// One of the two models with its cache.
struct Reader {
  Reader(ModelPtr model, PromptCache cache)
      : model(std::move(model)),
        cache(std::move(cache)),
        rewinder(this->model, this->cache) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  ModelPtr model;
  PromptCache cache;
  Rewinder rewinder;
  std::vector<int> unread;  // accepted tokens that it hasn't read
};

class SpeculativeGenerator : public TokenGenerator {
 public:
  SpeculativeGenerator(const std::vector<int>& prompt,
                       ModelPtr model,
                       ModelPtr draft_model,
                       const GenerateOptions& options)
      : prompt_(prompt),
        options_(options),
        cache_(usable_cache({model, draft_model}, options_, own_cache_)),
        target_(model, model_part(*model)),
        draft_(draft_model, draft_part(*model)),
        sampling_(options_) {
    int length = static_cast<int>(prompt_.size());
    check_quantization(cache_, length, options_);
    check_length(*model, length, target_.cache, options_);
  }

  ~SpeculativeGenerator() override {
    try {
      end_round();
    } catch (...) {
      // Nobody is left to tell; the caches may hold drafted tokens.
    }
  }

  std::optional<StepResult> next() override {
    if (num_yielded_ == options_.max_tokens || failed_) {
      return std::nullopt;
    }
    failed_ = true;  // unless this ends well
    check_interruption(options_);
    under_way_.go_on_here();
    if (!started_) {
      read_prompt();
    }
    if (accepted_.empty()) {
      end_round();
      draft_and_check();
    }
    StepResult result = std::move(accepted_.front());
    accepted_.pop_front();
    num_taken_ += result.from_draft ? 1 : 0;
    ++num_yielded_;
    if (num_yielded_ == options_.max_tokens) {
      end_round();
    }
    failed_ = false;
    return result;
  }

 private:
  PromptCache model_part(const Model& model) const {
    return {cache_.begin(), cache_.begin() + size_of(model)};
  }
  PromptCache draft_part(const Model& model) const {
    return {cache_.begin() + size_of(model), cache_.end()};
  }
  std::ptrdiff_t size_of(const Model& model) const {
    return static_cast<std::ptrdiff_t>(model.make_cache().size());
  }

  void read_prompt() {
    Prompt prompt{prompt_, std::nullopt, static_cast<int>(prompt_.size())};
    prefill(*draft_.model, draft_.cache, prompt, options_, [](int) {});
    prefill(*target_.model, target_.cache, prompt, options_, [&](int done) {
      report(done);
    });
    draft_.unread = target_.unread = {prompt_.back()};
    sampling_.add_history(prompt_);
    started_ = true;
  }

  void report(int done) {
    if (options_.prompt_progress) {
      options_.prompt_progress(done, static_cast<int>(prompt_.size()));
    }
  }

  // Reads [N] tokens; the logits of the last `count`, [count, V].
  mx::array read(Reader& reader, const mx::array& tokens, int count) {
    auto logits =
        reader.model->forward(mx::expand_dims(tokens, 0), reader.cache);
    apply_quantization(reader.cache, options_);
    return last_logits(logits, count);
  }

  // Tokens [num_drafts], one drawn after the other.
  mx::array draft(int num_drafts) {
    auto next = mx::flatten(token_row(draft_.unread));
    std::vector<mx::array> drafted;
    for (int i = 0; i < num_drafts; ++i) {
      auto logits = read(draft_, next, 1);
      std::optional<mx::array> before;
      if (!drafted.empty()) {
        before = mx::concatenate(drafted);
      }
      next = sampling_.draw(logits, before).token;
      mx::async_eval(next);
      drafted.push_back(next);
    }
    return mx::concatenate(drafted);
  }

  // What the model draws after each of the drafts: [N], logprobs [N, V].
  Sampled check(const mx::array& drafts) {
    int count = drafts.shape(0) + 1;
    auto unread = mx::flatten(token_row(target_.unread));
    auto logits = read(target_, mx::concatenate({unread, drafts}), count);
    if (!sampling_.has_processors()) {
      return sampling_.draw_each(logits);
    }
    std::vector<mx::array> tokens;
    std::vector<mx::array> logprobs;
    for (int i = 0; i < count; ++i) {
      auto row = mx::slice(logits, {i, 0}, {i + 1, logits.shape(1)});
      Sampled one = sampling_.draw(row, mx::slice(drafts, {0}, {i}));
      tokens.push_back(one.token);
      logprobs.push_back(one.logprobs);
    }
    return {mx::concatenate(tokens), mx::stack(logprobs, 0)};
  }

  // One round: fills `accepted_` and remembers what it takes to end it.
  void draft_and_check() {
    int num_drafts = options_.num_draft_tokens;
    if (options_.max_tokens >= 0) {
      num_drafts = static_cast<int>(std::min<std::int64_t>(
          num_drafts, options_.max_tokens - num_yielded_));
    }
    draft_.rewinder.begin(static_cast<int>(draft_.unread.size()) + num_drafts);
    target_.rewinder.begin(1 + num_drafts);
    num_taken_ = 0;
    auto drafts = draft(num_drafts);
    Sampled sampled = check(drafts);
    mx::eval(drafts, sampled.token);
    if (num_yielded_ == 0) {
      report(static_cast<int>(prompt_.size()));
    }
    drafts_.assign(drafts.data<int>(), drafts.data<int>() + num_drafts);
    in_round_ = true;
    const int* tokens = sampled.token.data<int>();
    int num_accepted = 0;
    while (num_accepted < num_drafts &&
           tokens[num_accepted] == drafts_[num_accepted]) {
      ++num_accepted;
    }
    for (int i = 0; i <= num_accepted; ++i) {
      accepted_.push_back(
          {tokens[i],
           mx::slice(
               sampled.logprobs, {i, 0}, {i + 1, sampled.logprobs.shape(1)}),
           i < num_accepted});
      auto& logprobs = accepted_.back().logprobs;
      logprobs = mx::squeeze(logprobs, 0);
    }
    next_token_ = tokens[num_accepted];
  }

  // Rewinds both caches to the tokens that were taken, and prepares what they
  // read next.
  void end_round() {
    if (!std::exchange(in_round_, false)) {
      return;
    }
    int num_drafts = static_cast<int>(drafts_.size());
    auto read = target_.unread;
    read.insert(read.end(), drafts_.begin(), drafts_.end());
    target_.rewinder.rewind(
        read, static_cast<int>(target_.unread.size()) + num_taken_);

    // The draft model hasn't read its last draft.
    read = draft_.unread;
    if (num_drafts > 0) {
      read.insert(read.end(), drafts_.begin(), drafts_.end() - 1);
    }
    draft_.rewinder.rewind(read,
                           static_cast<int>(draft_.unread.size()) + num_taken_);

    target_.unread = {next_token_};
    draft_.unread = {next_token_};
    if (num_taken_ == num_drafts && num_drafts > 0) {
      draft_.unread.insert(draft_.unread.begin(), drafts_.back());
    }
    std::vector<int> taken(drafts_.begin(), drafts_.begin() + num_taken_);
    taken.push_back(next_token_);
    sampling_.add_history(taken);
    accepted_.clear();
    publish();
  }

  // The caller's list gets the layers that quantization replaced.
  void publish() {
    auto rest = std::ranges::copy(target_.cache, cache_.begin()).out;
    std::ranges::copy(draft_.cache, rest);
  }

  std::vector<int> prompt_;
  GenerateOptions options_;
  PromptCache own_cache_;
  PromptCache& cache_;
  Reader target_;
  Reader draft_;
  Sampling sampling_;

  bool started_ = false;
  bool failed_ = false;
  bool in_round_ = false;
  std::int64_t num_yielded_ = 0;

  // Of the current round:
  std::vector<int> drafts_;
  int next_token_ = 0;               // the model's own, after the accepted
  int num_taken_ = 0;                // accepted drafts given out by next()
  std::deque<StepResult> accepted_;  // those still to be given out
  StepsUnderWay under_way_;          // the last member: ends first
};

}  // namespace

std::unique_ptr<TokenGenerator> speculative_generate_step(
    const std::vector<int>& prompt,
    ModelPtr model,
    ModelPtr draft_model,
    const GenerateOptions& options) {
  check_options(prompt, *model, options);
  check_options(prompt, *draft_model, options);
  if (options.input_embeddings) {
    throw Error(ErrorKind::unsupported,
                "speculative decoding does not support input embeddings");
  }
  if (options.num_draft_tokens < 1) {
    throw Error(ErrorKind::argument,
                "num_draft_tokens is " +
                    std::to_string(options.num_draft_tokens) +
                    "; it must be at least 1");
  }
  if (model->vocabulary_size() != draft_model->vocabulary_size()) {
    throw Error(ErrorKind::argument,
                "the draft model has a vocabulary of " +
                    std::to_string(draft_model->vocabulary_size()) +
                    " tokens, the model one of " +
                    std::to_string(model->vocabulary_size()) +
                    "; they must have the same tokenizer");
  }
  return std::make_unique<SpeculativeGenerator>(
      prompt, std::move(model), std::move(draft_model), options);
}

}  // namespace mlxlm
