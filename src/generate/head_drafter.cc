// Drafts of the model's own head for predicting several tokens, drawn one after
// the other: the first of the model's state, further ones of the head's.
//
// The head reads each token with the state that the model left of the one
// before. Where that isn't known (of the first token, and of what a cache had
// read before) it is zero: drafts are the worse, never the answer.
#include <algorithm>
#include <utility>

#include <mlx/mlx.h>

#include "generate/draft_draw.h"
#include "generate/drafter.h"
#include "generate/prefill.h"
#include "generate/return_point.h"
#include "generate/sampling.h"

namespace mlxlm {
namespace {

// Tokens that wait to be read until a draft is asked for, at most.
constexpr int kMaxWaiting = 64;

mx::array tokens_between(const mx::array& x, int first, int end) {
  return mx::slice(x, {0, first, 0}, {1, end, x.shape(2)});
}

class HeadDrafter : public Drafter {
 public:
  HeadDrafter(ModelPtr model, PromptCache cache, const GenerateOptions& options)
      : model_(std::move(model)),
        head_(*model_->draft_head()),
        cache_(std::move(cache)),
        options_(options),
        sampling_(options) {}

  void begin(const std::vector<int>& earlier,
             const std::vector<int>& prompt) override {
    sampling_.add_history(prompt);
    if (is_fresh(cache_)) {
      waiting_ = earlier;
    }
    num_read_ = -static_cast<int>(waiting_.size());
    waiting_.insert(waiting_.end(), prompt.begin(), prompt.end());
    auto embedding = model_->embed(token_row({0}));
    states_ = mx::broadcast_to(mx::zeros({1, 1, 1}, embedding.dtype()),
                               {1, 1 - num_read_, embedding.shape(2)});
    read_if_many();
  }

  int outlook() const override { return 1; }

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
    read_if_many();
  }

  std::optional<Draft> propose(int count) override {
    const int num_waiting = static_cast<int>(waiting_.size());
    if (num_waiting == 0 || num_readable() < num_waiting) {
      return std::nullopt;
    }
    auto state = read(num_waiting);
    point_.set(cache_, count - 1);
    DraftDraw draw(sampling_);
    while (true) {
      const auto& token = draw.draw(last_logits(head_.logits(state), 1));
      if (draw.count() == count) break;
      state = pass(mx::reshape(token, {1, 1}), state);
    }
    num_drafts_read_ = count - 1;
    return draw.draft();
  }

  void accept(const std::vector<int>& tokens, int) override {
    // Accepted tokens are read again, of the model's states.
    point_.take_back(cache_, std::exchange(num_drafts_read_, 0), 0);
    waiting_.insert(waiting_.end(), tokens.begin(), tokens.end());
    sampling_.add_history(tokens);
  }

  void finish() override {
    if (num_readable() > 0) {
      read(num_readable());
    }
  }
  PromptCache cache() const override { return cache_; }

 private:
  int num_readable() const {
    return std::min(static_cast<int>(waiting_.size()), states_.shape(1));
  }

  void read_if_many() {
    while (num_readable() > kMaxWaiting) {
      read(std::min(num_readable() - 1, options_.prefill_step_tokens));
      std::vector<mx::array> arrays;
      for (const auto& layer : cache_) {
        layer->append_arrays_to(arrays);
      }
      mx::async_eval(std::move(arrays));
    }
  }

  mx::array pass(const mx::array& tokens, const mx::array& states) {
    auto left = head_.forward(tokens, states, cache_);
    apply_quantization(cache_, options_);
    return left;
  }

  // Reads the first `count` that wait; the state of the last, [1, 1, D].
  mx::array read(int count) {
    auto end = waiting_.begin() + count;
    auto left = pass(token_row({waiting_.begin(), end}),
                     tokens_between(states_, 0, count));
    waiting_.erase(waiting_.begin(), end);
    states_ = tokens_between(states_, count, states_.shape(1));
    num_read_ += count;
    return tokens_between(left, count - 1, count);
  }

  ModelPtr model_;
  DraftHead& head_;
  PromptCache cache_;
  const GenerateOptions& options_;
  Sampling sampling_;
  int num_read_ = 0;  // of the text, which begins with the prompt
  // The text's tokens from there on, and the model's states [1, S, D] from the
  // token before on.
  std::vector<int> waiting_;
  mx::array states_ = mx::array(0.0f);
  ReturnPoint point_;
  int num_drafts_read_ = 0;  // since accept()
};

}  // namespace

std::unique_ptr<Drafter> make_head_drafter(ModelPtr model,
                                           PromptCache cache,
                                           const GenerateOptions& options) {
  return std::make_unique<HeadDrafter>(
      std::move(model), std::move(cache), options);
}

}  // namespace mlxlm
