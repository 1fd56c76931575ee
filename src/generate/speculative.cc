// speculative_generate_step: a drafter proposes tokens, the model checks them
// all in one pass. What it accepts is what it would have drawn itself, so the
// tokens are those of generate_step.
//
// Unlike the reference, logits processors see the prompt here, too, above
// temperature 0 the acceptance is rejection sampling, caches that can't be
// trimmed are rolled back, and the length of drafts is chosen as it pays.
#include <algorithm>
#include <chrono>
#include <deque>
#include <utility>

#include <mlx/mlx.h>

#include <mlxlm/generate.h>

#include "generate/acceptance.h"
#include "generate/draft_length.h"
#include "generate/drafter.h"
#include "generate/interruption.h"
#include "generate/options.h"
#include "generate/prefill.h"
#include "generate/rate.h"
#include "generate/reader.h"
#include "generate/round.h"
#include "generate/sampling.h"
#include "generate/under_way.h"

namespace mlxlm {
namespace {

using Clock = std::chrono::steady_clock;

class SpeculativeGenerator : public TokenGenerator {
 public:
  // The options say who drafts.
  SpeculativeGenerator(Prompt prompt,
                       ModelPtr model,
                       const GenerateOptions& options)
      : prompt_(std::move(prompt)),
        options_(options),
        cache_(usable_cache_with_draft(*model, options_, own_cache_)),
        target_(model, split_layers(*model, cache_).first, options_),
        drafter_(
            make_drafter(model, split_layers(*model, cache_).second, options_)),
        sampling_(options_),
        length_(options_.num_draft_tokens) {
    check_quantization(cache_, prompt_.length, options_);
    check_length(*model, prompt_.length, target_.cache(), options_);
    statistics_.draft = options_.draft;
    if (drafter_->wants_states()) {
      target_.tell_states([this](int first, const mx::array& states) {
        drafter_->read_states(first, states);
        while (drafter_->read_ahead(options_.prefill_step_tokens) > 0) {
        }
      });
    }
  }

  ~SpeculativeGenerator() override {
    try {
      finish();
    } catch (...) {
      // Nobody is left to tell; the caches may hold drafted tokens.
    }
  }

  std::optional<StepResult> next() override {
    if (failed_) {
      return std::nullopt;
    }
    failed_ = true;  // unless this ends well
    check_interruption(options_);
    under_way_.go_on_here();
    if (!started_) {
      read_prompt();
    }
    if (num_yielded_ == options_.max_tokens) {
      finish();
      return std::nullopt;
    }
    while (ready_.empty()) {
      end_round();
      advance();
    }
    StepResult result = std::move(ready_.front());
    ready_.pop_front();
    num_taken_ += 1;
    if (num_yielded_ == 0) {
      report(prompt_.length);
    }
    if (++num_yielded_ == options_.max_tokens) {
      finish();
    }
    failed_ = false;
    return result;
  }

  const SpeculationStatistics* speculation() const override {
    const double plain = length_.plain_seconds();
    statistics_.plain_tps = plain > 0 ? 1 / plain : 0;
    statistics_.speedup = length_.speedup();
    return &statistics_;
  }

 private:
  void report(int done) {
    if (options_.prompt_progress) {
      options_.prompt_progress(done, prompt_.length);
    }
  }

  void read_prompt() {
    drafter_->begin(options_.earlier_tokens);
    drafter_->add_prompt(prompt_.tokens);
    while (drafter_->read_ahead(options_.prefill_step_tokens) > 0) {
      evaluate_prompt_cache(drafter_->cache());
      mx::clear_cache();
      check_interruption(options_);
    }
    target_.read_prompt(prompt_, [&](int done) { report(done); });
    sampling_.add_history(prompt_.tokens);
    if (prompt_.embeddings) {
      under_way_token_ = sample(target_.read_last(prompt_));
    }
    prompt_.tokens.clear();
    prompt_.embeddings.reset();
    started_ = true;
    finished_ = false;
  }

  // Drafts that may be read next.
  int most_drafts() const {
    if (target_.unread().size() > kMaxUnread) {
      return 0;
    }
    int most = target_.readable_drafts();
    if (options_.max_tokens >= 0) {
      most = static_cast<int>(
          std::min<std::int64_t>(most, options_.max_tokens - num_yielded_));
    }
    return most;
  }

  // Fills ready_ with a token at least, or dispatches the step that will.
  void advance() {
    const auto start = Clock::now();
    if (num_advances_++ % 256 == 0) {
      mx::clear_cache();
    }
    const int outlook = drafter_->outlook();
    const int count = std::min(length_.choose(outlook), most_drafts());
    if (under_way_token_) {
      take_under_way(count > 0, start);
      return;
    }
    std::optional<Draft> draft;
    if (count > 0) {
      draft = drafter_->propose(count, sampling_);
    }
    if (draft) {
      check(*draft, outlook, start);
    } else {
      under_way_token_ = sample(target_.read_unread());
      is_ahead_ = false;
    }
  }

  // The token of the step that is under way. A draft can begin only after it;
  // otherwise the step after it is dispatched before it is waited for.
  void take_under_way(bool draft_follows, Clock::time_point start) {
    Sampled sampled = *std::exchange(under_way_token_, std::nullopt);
    const bool was_ahead = is_ahead_;
    sampling_.add_history(sampled.token);
    is_ahead_ = !draft_follows && num_yielded_ + 1 != options_.max_tokens;
    if (is_ahead_) {
      under_way_token_ = sample(target_.read_one(sampled.token));
    }
    const int token = sampled.token.item<int>();
    if (!is_ahead_) {
      target_.add_unread({token});
    }
    drafter_->accept({token}, 0);
    ready_.push_back({token, sampled.logprobs, false});
    if (was_ahead && is_ahead_) {
      length_.note_plain(seconds_since(start));
    } else {
      length_.note_other(seconds_since(start));
    }
  }

  Sampled sample(const mx::array& logits) {
    Sampled sampled = sampling_.draw(logits);
    mx::async_eval(sampled.token, sampled.logprobs);
    return sampled;
  }

  // One round: the draft and the model's pass over it.
  void check(const Draft& draft, int outlook, Clock::time_point start) {
    target_.begin_drafts(static_cast<int>(target_.unread().size()) +
                         draft.size());
    auto unread = target_.unread();
    auto results =
        mlxlm::accept(target_.read_unread_and(draft.tokens), draft, sampling_);
    round_ = begin_round(std::move(unread), draft.tokens, results);
    num_taken_ = 0;
    for (auto& result : results) {
      ready_.push_back(std::move(result));
    }
    length_.note_round(outlook,
                       round_->num_drafts(),
                       round_->num_accepted(),
                       seconds_since(start));
    count_round(*round_, statistics_);
  }

  // Takes back what was read of the draft and not given out.
  void end_round() {
    auto round = std::exchange(round_, std::nullopt);
    if (!round) {
      return;
    }
    ready_.clear();
    const int num_kept = round->num_kept(num_taken_);
    auto& tokens = round->tokens;
    tokens.resize(num_taken_);
    target_.keep(round->read, round->num_unread + num_kept);
    target_.add_unread({tokens.begin() + num_kept, tokens.end()});
    drafter_->accept(tokens, num_kept);
    publish();
  }

  // At the end: the caches have read all that was given out, and no more.
  void finish() {
    if (!std::exchange(finished_, true)) {
      end_round();
      if (options_.prompt_cache != nullptr) {
        // Evaluated when they are used.
        if (!target_.unread().empty()) {
          target_.read_unread();
        }
        drafter_->read_up_to(0);
      }
    }
    publish();
  }

  // The caller's list gets the layers that quantization replaced.
  void publish() {
    auto rest = std::ranges::copy(target_.cache(), cache_.begin()).out;
    std::ranges::copy(drafter_->cache(), rest);
  }

  Prompt prompt_;
  GenerateOptions options_;
  PromptCache own_cache_;
  PromptCache& cache_;
  Reader target_;
  std::unique_ptr<Drafter> drafter_;
  Sampling sampling_;
  DraftLength length_;
  mutable SpeculationStatistics statistics_;

  bool started_ = false;
  bool finished_ = true;  // or not started
  bool failed_ = false;
  std::int64_t num_yielded_ = 0;
  std::int64_t num_advances_ = 0;

  std::deque<StepResult> ready_;  // to be given out
  // A plain step that was dispatched, and whether that was before the token
  // that it read was waited for.
  std::optional<Sampled> under_way_token_;
  bool is_ahead_ = false;

  std::optional<Round> round_;
  int num_taken_ = 0;        // of its tokens, given out by next()
  StepsUnderWay under_way_;  // the last member: ends first
};

}  // namespace

std::unique_ptr<TokenGenerator> speculative_generate_step(
    const std::vector<int>& prompt,
    ModelPtr model,
    ModelPtr draft_model,
    const GenerateOptions& options) {
  GenerateOptions drafting = options;
  drafting.draft_model = std::move(draft_model);
  if (drafting.draft_model) {
    drafting.draft = DraftKind::model;
  } else if (drafting.draft != DraftKind::mtp) {
    drafting.draft = DraftKind::ngram;
  }
  draft_kind(*model, drafting);
  check_options(prompt, *model, drafting);
  check_no_prefix_store(drafting);
  check_drafts(prompt, drafting);
  return std::make_unique<SpeculativeGenerator>(
      Prompt{prompt, options.input_embeddings, prompt_length(prompt, options)},
      std::move(model),
      drafting);
}

}  // namespace mlxlm
