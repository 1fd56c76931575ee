#include "batch/row_drafts.h"

#include <algorithm>
#include <utility>

#include <mlx/mlx.h>

#include "generate/acceptance.h"
#include "generate/prefill.h"

namespace mlxlm {

RowDrafts::RowDrafts(ModelPtr model,
                     PromptCache& cache,
                     const GenerateOptions& options)
    : model_(std::move(model)),
      cache_(cache),
      options_(options),
      length_(options.num_draft_tokens) {
  statistics_.draft = draft_kind(*model_, options);
}

RowDrafts::~RowDrafts() { see_all_stepwise(cache_, false); }

void RowDrafts::start(PromptCache draft_cache) {
  drafter_ = make_drafter(model_, std::move(draft_cache), options_);
  num_read_ = 0;
  unread_.clear();
}

void RowDrafts::begin(const std::vector<int>& earlier) {
  drafter_->begin(earlier);
}

void RowDrafts::add_prompt(const std::vector<int>& tokens) {
  drafter_->add_prompt(tokens);
}

void RowDrafts::read_states(const mx::array& states) {
  drafter_->read_states(num_read_, states);
  num_read_ += states.shape(1);
}

int RowDrafts::most(int tokens_left) const {
  if (unread_.size() > kMaxUnread) return 0;
  return std::min(readable_drafts(cache_, num_unread(), options_), tokens_left);
}

int RowDrafts::num_wanted(int tokens_left) const {
  return std::min(length_.choose(drafter_->outlook()), most(tokens_left));
}

void RowDrafts::add(int token, bool is_read) {
  drafter_->accept({token}, 0);
  if (!is_read) unread_.push_back(token);
}

void RowDrafts::set_draft(std::optional<Draft> draft) {
  outlook_ = drafter_->outlook();
  draft_ = std::move(draft);
  if (draft_) point_.set(cache_, num_tokens());
}

mx::array RowDrafts::tokens() const {
  auto unread = token_array(unread_);
  return draft_ ? mx::concatenate({unread, draft_->tokens}) : unread;
}

int RowDrafts::num_tokens() const { return num_unread() + num_drafts(); }

std::vector<StepResult> RowDrafts::check(const mx::array& logits,
                                         Sampling& sampling) {
  auto results = accept(logits, *draft_, sampling);
  round_ = begin_round(std::move(unread_), draft_->tokens, results);
  draft_.reset();
  count_round(*round_, statistics_);
  timed_ = round_;
  return results;
}

void RowDrafts::keep(int num_given) {
  auto round = *std::exchange(round_, std::nullopt);
  const int num_kept = round.num_kept(num_given);
  const int num_stay = round.num_unread + num_kept;
  const int num_read = static_cast<int>(round.read.size());
  const int num_held = point_.take_back(cache_, num_read, num_stay);
  num_read_ -= num_read - num_held;
  unread_ = {round.read.begin() + num_held, round.read.begin() + num_stay};
  round.tokens.resize(num_given);
  unread_.insert(
      unread_.end(), round.tokens.begin() + num_kept, round.tokens.end());
  drafter_->accept(round.tokens, num_kept);
}

void RowDrafts::read_rest() {
  if (unread_.empty()) return;
  const auto tokens = token_row(unread_);
  if (wants_states()) {
    read_states(model_->forward_with_states(tokens, cache_).states);
  } else {
    model_->forward(tokens, cache_);
  }
  apply_quantization(cache_, options_);
  unread_.clear();
}

void RowDrafts::note_seconds(double seconds) {
  if (auto round = std::exchange(timed_, std::nullopt)) {
    length_.note_round(
        outlook_, round->num_drafts(), round->num_accepted(), seconds);
  } else {
    length_.note_plain(seconds);
  }
}

const SpeculationStatistics& RowDrafts::statistics() const {
  const double plain = length_.plain_seconds();
  statistics_.plain_tps = plain > 0 ? 1 / plain : 0;
  statistics_.speedup = length_.speedup();
  return statistics_;
}

}  // namespace mlxlm
