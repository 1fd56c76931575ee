// Drafts of a smaller model, drawn one after the other with the same sampler
// and processors.
#include <algorithm>
#include <limits>
#include <utility>

#include <mlx/mlx.h>

#include "generate/draft_draw.h"
#include "generate/drafter.h"
#include "generate/reader.h"
#include "generate/sampling.h"

namespace mlxlm {
namespace {

// logits [1, V] with as many tokens as the large model knows: vocabularies are
// padded differently within a family of models.
mx::array fitted(const mx::array& logits, int vocabulary_size) {
  const int size = logits.shape(1);
  if (size > vocabulary_size) {
    return mx::slice(logits, {0, 0}, {1, vocabulary_size});
  }
  if (size < vocabulary_size) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    return mx::pad(
        logits, {{0, 0}, {0, vocabulary_size - size}}, mx::array(kNever));
  }
  return logits;
}

class ModelDrafter : public Drafter {
 public:
  ModelDrafter(ModelPtr model,
               PromptCache cache,
               int vocabulary_size,
               const GenerateOptions& options)
      : reader_(std::move(model), std::move(cache), options),
        sampling_(options),
        vocabulary_size_(vocabulary_size) {}

  void begin(const std::vector<int>& earlier,
             const std::vector<int>& prompt) override {
    Prompt unread{prompt};
    if (is_fresh(reader_.cache())) {
      unread.tokens.insert(
          unread.tokens.begin(), earlier.begin(), earlier.end());
    }
    unread.length = static_cast<int>(unread.tokens.size());
    reader_.read_prompt(unread, [](int) {});
    sampling_.add_history(prompt);
  }

  int outlook() const override { return 1; }

  std::optional<Draft> propose(int count) override {
    DraftDraw draw(sampling_);
    auto logits = reader_.read_unread();
    reader_.begin_drafts(count - 1);
    while (true) {
      const auto& token = draw.draw(fitted(logits, vocabulary_size_));
      if (draw.count() == count) break;
      logits = reader_.read_one(token);
    }
    auto draft = draw.draft();
    drafted_ = draft.tokens;
    return draft;
  }

  void accept(const std::vector<int>& tokens, int num_accepted) override {
    int num_kept = 0;
    if (auto drafted = std::exchange(drafted_, std::nullopt)) {
      drafted->eval();
      // The last one hasn't been read.
      const int num_read = drafted->shape(0) - 1;
      const int* first = drafted->data<int>();
      num_kept = std::min(num_accepted, num_read);
      reader_.keep({first, first + num_read}, num_kept);
    }
    reader_.add_unread({tokens.begin() + num_kept, tokens.end()});
    sampling_.add_history(tokens);
  }

  void finish() override {
    if (!reader_.unread().empty()) {
      reader_.read_unread();
    }
  }
  PromptCache cache() const override { return reader_.cache(); }

 private:
  Reader reader_;
  Sampling sampling_;
  int vocabulary_size_;
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
