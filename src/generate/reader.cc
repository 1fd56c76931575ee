#include "generate/reader.h"

#include <utility>

#include <mlx/mlx.h>

#include "generate/round.h"
#include "generate/sampling.h"

namespace mlxlm {
Reader::Reader(ModelPtr model,
               PromptCache cache,
               const GenerateOptions& options)
    : model_(std::move(model)), cache_(std::move(cache)), options_(options) {}

Reader::~Reader() { see_all_stepwise(cache_, false); }

void Reader::read_prompt(const Prompt& prompt,
                         const std::function<void(int)>& progress) {
  auto read = [&](int first, int count) {
    if (tell_states_) {
      auto begin = prompt.tokens.begin() + first;
      pass(token_array({begin, begin + count}));
    } else {
      forward_part(*model_, cache_, prompt, first, count);
    }
  };
  prefill(read, cache_, prompt, options_, progress);
  see_all_stepwise(cache_, true);
  if (!prompt.embeddings) {
    unread_ = {prompt.tokens.back()};
  }
}

mx::array Reader::read_last(const Prompt& prompt) {
  auto logits = forward_part(*model_, cache_, prompt, prompt.length - 1, 1);
  apply_quantization(cache_, options_);
  return last_logits(logits, 1);
}

void Reader::add_unread(const std::vector<int>& tokens) {
  unread_.insert(unread_.end(), tokens.begin(), tokens.end());
}

int Reader::readable_drafts() const {
  return mlxlm::readable_drafts(
      cache_, static_cast<int>(unread_.size()), options_);
}

// tokens [L] -> logits [1, L, V].
mx::array Reader::pass(const mx::array& tokens) {
  const auto row = mx::expand_dims(tokens, 0);
  if (!tell_states_) {
    return model_->forward(row, cache_);
  }
  auto read = model_->forward_with_states(row, cache_);
  tell_states_(num_read_, read.states);
  num_read_ += tokens.shape(0);
  return read.logits;
}

mx::array Reader::forward(const mx::array& tokens, int count) {
  auto logits = pass(tokens);
  apply_quantization(cache_, options_);
  return last_logits(logits, count);
}

mx::array Reader::read_unread() {
  const auto chunk = static_cast<std::size_t>(options_.prefill_step_tokens);
  while (unread_.size() > chunk) {
    auto end = unread_.begin() + static_cast<std::ptrdiff_t>(chunk);
    forward(token_array({unread_.begin(), end}), 1);
    evaluate_prompt_cache(cache_);
    unread_.erase(unread_.begin(), end);
  }
  return forward(token_array(std::exchange(unread_, {})), 1);
}

mx::array Reader::read_unread_and(const mx::array& drafts) {
  auto unread = token_array(std::exchange(unread_, {}));
  return forward(mx::concatenate({unread, drafts}), drafts.shape(0) + 1);
}

mx::array Reader::read_one(const mx::array& token) { return forward(token, 1); }

void Reader::begin_drafts(int count) { point_.set(cache_, count); }

void Reader::keep(const std::vector<int>& read, int num_kept) {
  const int num_read = static_cast<int>(read.size());
  const int num_held = point_.take_back(cache_, num_read, num_kept);
  num_read_ -= num_read - num_held;
  unread_.insert(
      unread_.begin(), read.begin() + num_held, read.begin() + num_kept);
}

}  // namespace mlxlm
