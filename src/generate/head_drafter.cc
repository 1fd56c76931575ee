// Drafts of the model's own head for predicting several tokens, drawn one after
// the other: the first of the model's state, further ones of the head's.
//
// The head reads each token with the state that the model left of the one
// before. Where that isn't known (of the first token, and of what a cache had
// read before) it is zero: drafts are the worse, never the answer.
#include <algorithm>
#include <utility>

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "cache/settle.h"
#include "generate/network_drafter.h"
#include "generate/prefill.h"
#include "generate/return_point.h"

namespace mlxlm {
namespace {

mx::array tokens_between(const mx::array& x, int first, int end) {
  return mx::slice(x, {0, first, 0}, {1, end, x.shape(2)});
}

class HeadDrafter : public NetworkDrafter {
 public:
  HeadDrafter(ModelPtr model, PromptCache cache, const GenerateOptions& options)
      : model_(std::move(model)),
        head_(*model_->draft_head()),
        cache_(std::move(cache)),
        options_(options) {}

  void begin(const std::vector<int>& earlier) override {
    if (is_fresh(cache_)) {
      waiting_ = earlier;
    }
    num_read_ = -num_waiting();
    auto embedding = model_->embed(token_row({0}));
    states_ = mx::broadcast_to(mx::zeros({1, 1, 1}, embedding.dtype()),
                               {1, 1 - num_read_, embedding.shape(2)});
  }

  void add_prompt(const std::vector<int>& tokens) override {
    waiting_.insert(waiting_.end(), tokens.begin(), tokens.end());
  }

  bool wants_states() const override { return true; }

  void read_states(int first, const mx::array& states) override {
    // The place in `states_` of the new ones: from there on it was a draft's.
    const int at = first - (num_read_ - 1);
    if (at + states.shape(1) <= 0) {
      return;
    }
    if (at <= 0) {
      states_ = tokens_between(states, -at, states.shape(1));
    } else {
      states_ = mx::concatenate({tokens_between(states_, 0, at), states}, 1);
    }
  }

  // If many wait, so that they don't all do until a draft is asked for.
  int read_ahead(int most) override {
    const int count =
        num_readable() > kMaxWaiting ? std::min(num_readable() - 1, most) : 0;
    if (count > 0) {
      read_first(count);
      mx::async_eval(arrays_of(cache_));
    }
    return count;
  }

  int outlook() const override {
    return num_waiting() > kMaxWaiting ? kNoOutlook : 1;
  }

  const void* identity() const override { return &head_; }

  Pass read(const std::vector<Part>& parts) const override {
    const auto row = join(parts);
    auto left = take_positions(
        head_.forward(row.tokens, *row.states, row.caches), row.ends);
    return {last_logits(head_.logits(left), left.shape(1)), left};
  }

  bool begin_draft(int count) override {
    if (waiting_.empty() || num_readable() < num_waiting()) {
      return false;
    }
    num_drafts_read_ = count - 1;
    next_ = token_array(waiting_);
    next_states_ = tokens_between(states_, 0, num_waiting());
    return true;
  }

  Part next_part() const override { return {*next_, *next_states_, &cache_}; }

  void note_read(const std::optional<mx::array>& state) override {
    apply_quantization(cache_, options_);
    if (!waiting_.empty()) {
      note_first(num_waiting());
      point_.set(cache_, num_drafts_read_);
    }
    next_states_ = state;
  }

  void go_on_with(const mx::array& token) override { next_ = token; }
  void end_draft(const Draft&) override {}

  void accept(const std::vector<int>& tokens, int) override {
    // Accepted tokens are read again, of the model's states.
    point_.take_back(cache_, std::exchange(num_drafts_read_, 0), 0);
    waiting_.insert(waiting_.end(), tokens.begin(), tokens.end());
  }

  bool read_up_to(int num_left) override {
    while (num_waiting() > num_left && num_readable() > 0) {
      read_first(std::min({num_waiting() - num_left,
                           num_readable(),
                           options_.prefill_step_tokens}));
    }
    return num_waiting() == num_left;
  }

  PromptCache cache() const override { return cache_; }

 private:
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  int num_readable() const { return std::min(num_waiting(), states_.shape(1)); }

  // Of those that wait.
  void read_first(int count) {
    head_.forward(token_row({waiting_.begin(), waiting_.begin() + count}),
                  tokens_between(states_, 0, count),
                  cache_);
    apply_quantization(cache_, options_);
    note_first(count);
  }

  void note_first(int count) {
    waiting_.erase(waiting_.begin(), waiting_.begin() + count);
    states_ = tokens_between(states_, count, states_.shape(1));
    num_read_ += count;
  }

  ModelPtr model_;
  DraftHead& head_;
  PromptCache cache_;
  const GenerateOptions& options_;
  int num_read_ = 0;  // of the text, which begins with the prompt
  // The text's tokens from there on, and the model's states [1, S, D] from the
  // token before on.
  std::vector<int> waiting_;
  mx::array states_ = mx::array(0.0f);
  ReturnPoint point_;
  int num_drafts_read_ = 0;        // since accept()
  std::optional<mx::array> next_;  // of the draft that is being made
  std::optional<mx::array> next_states_;
};

}  // namespace

std::unique_ptr<Drafter> make_head_drafter(ModelPtr model,
                                           PromptCache cache,
                                           const GenerateOptions& options) {
  return std::make_unique<HeadDrafter>(
      std::move(model), std::move(cache), options);
}

}  // namespace mlxlm
