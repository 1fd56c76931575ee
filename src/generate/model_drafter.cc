// Drafts of a smaller model, drawn one after the other with the same sampler
// and processors.
#include <algorithm>
#include <limits>
#include <utility>

#include <mlx/mlx.h>

#include "cache/settle.h"
#include "generate/network_drafter.h"
#include "generate/prefill.h"
#include "generate/return_point.h"
#include "generate/round.h"

namespace mlxlm {
namespace {

// logits [N, V] with as many tokens as the large model knows: vocabularies are
// padded differently within a family of models.
mx::array fitted(const mx::array& logits, int vocabulary_size) {
  const int size = logits.shape(1);
  if (size > vocabulary_size) {
    return mx::slice(logits, {0, 0}, {logits.shape(0), vocabulary_size});
  }
  if (size < vocabulary_size) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    return mx::pad(
        logits, {{0, 0}, {0, vocabulary_size - size}}, mx::array(kNever));
  }
  return logits;
}

class ModelDrafter : public NetworkDrafter {
 public:
  ModelDrafter(ModelPtr model,
               PromptCache cache,
               int vocabulary_size,
               const GenerateOptions& options)
      : model_(std::move(model)),
        cache_(std::move(cache)),
        vocabulary_size_(vocabulary_size),
        options_(options) {}
  ~ModelDrafter() override { see_all_stepwise(cache_, false); }
  ModelDrafter(const ModelDrafter&) = delete;
  ModelDrafter& operator=(const ModelDrafter&) = delete;

  void begin(const std::vector<int>& earlier) override {
    if (is_fresh(cache_)) {
      add_prompt(earlier);
    }
  }

  void add_prompt(const std::vector<int>& tokens) override {
    append(tokens);
    num_prompt_left_ += static_cast<int>(tokens.size());
  }

  // All but the last token.
  int read_ahead(int most) override {
    const int count = std::min({most, num_prompt_left_, num_unread() - 1});
    if (count <= 0) {
      return 0;
    }
    read_first(count);
    mx::async_eval(arrays_of(cache_));
    return count;
  }

  int outlook() const override {
    return num_prompt_left_ > kMaxWaiting ? kNoOutlook : 1;
  }

  const void* identity() const override { return model_.get(); }

  Pass read(const std::vector<Part>& parts) const override {
    const auto row = join(parts);
    const int count = static_cast<int>(parts.size());
    auto logits =
        count == 1
            ? last_logits(model_->forward(row.tokens, row.caches), 1)
            : last_logits(model_->forward_at(row.ends, row.tokens, row.caches),
                          count);
    return {fitted(logits, vocabulary_size_), std::nullopt};
  }

  bool begin_draft(int count) override {
    if (unread_.empty()) {
      return false;
    }
    while (num_unread() > options_.prefill_step_tokens) {
      read_first(options_.prefill_step_tokens);
    }
    see_all_stepwise(cache_, true);
    num_to_take_back_ = count - 1;
    next_ = token_array(unread_);
    return true;
  }

  Part next_part() const override { return {*next_, std::nullopt, &cache_}; }

  void note_read(const std::optional<mx::array>&) override {
    apply_quantization(cache_, options_);
    if (!unread_.empty()) {
      unread_.clear();
      num_prompt_left_ = 0;
      point_.set(cache_, num_to_take_back_);
    }
  }

  void go_on_with(const mx::array& token) override { next_ = token; }
  void end_draft(const Draft& draft) override { drafted_ = draft.tokens; }

  void accept(const std::vector<int>& tokens, int num_accepted) override {
    int num_held = 0;
    if (auto drafted = std::exchange(drafted_, std::nullopt)) {
      // The last one hasn't been read.
      const int num_read = drafted->shape(0) - 1;
      num_held =
          point_.take_back(cache_, num_read, std::min(num_accepted, num_read));
    }
    append({tokens.begin() + num_held, tokens.end()});
  }

  bool read_up_to(int num_left) override {
    while (num_unread() > num_left) {
      read_first(
          std::min(num_unread() - num_left, options_.prefill_step_tokens));
    }
    return num_unread() == num_left;
  }

  PromptCache cache() const override { return cache_; }

 private:
  int num_unread() const { return static_cast<int>(unread_.size()); }

  void append(const std::vector<int>& tokens) {
    unread_.insert(unread_.end(), tokens.begin(), tokens.end());
  }

  // Of what is unread.
  void read_first(int count) {
    const auto end = unread_.begin() + count;
    model_->forward(token_row({unread_.begin(), end}), cache_);
    apply_quantization(cache_, options_);
    unread_.erase(unread_.begin(), end);
    num_prompt_left_ = std::max(num_prompt_left_ - count, 0);
  }

  ModelPtr model_;
  PromptCache cache_;
  int vocabulary_size_;
  const GenerateOptions& options_;
  std::vector<int> unread_;  // the newest tokens of the text
  int num_prompt_left_ = 0;  // of them, the first
  ReturnPoint point_;
  int num_to_take_back_ = 0;
  std::optional<mx::array> next_;     // of the draft that is being made
  std::optional<mx::array> drafted_;  // since accept()
};

}  // namespace

std::unique_ptr<Drafter> make_model_drafter(ModelPtr model,
                                            PromptCache cache,
                                            int vocabulary_size,
                                            const GenerateOptions& options) {
  return std::make_unique<ModelDrafter>(
      std::move(model), std::move(cache), vocabulary_size, options);
}

}  // namespace mlxlm
