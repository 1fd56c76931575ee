#include "batch/row_drafts.h"

#include <algorithm>
#include <utility>

#include <mlx/mlx.h>

#include "generate/acceptance.h"
#include "generate/prefill.h"

namespace mlxlm {

RowDrafts::RowDrafts(PromptCache& cache, const GenerateOptions& options)
    : cache_(cache),
      options_(options),
      drafter_(make_ngram_drafter()),
      length_(options.num_draft_tokens) {
  statistics_.draft = DraftKind::ngram;
}

RowDrafts::~RowDrafts() { see_all_stepwise(cache_, false); }

void RowDrafts::begin(const std::vector<int>& text) {
  if (!std::exchange(begun_, true)) {
    drafter_->begin(options_.earlier_tokens, text);
    see_all_stepwise(cache_, true);
  }
}

int RowDrafts::most(int tokens_left) const {
  if (unread_.size() > kMaxUnread) return 0;
  return std::min(readable_drafts(cache_, num_unread(), options_), tokens_left);
}

bool RowDrafts::wants(int tokens_left) const {
  return std::min(length_.choose(drafter_->outlook()), most(tokens_left)) > 0;
}

void RowDrafts::add(int token, bool is_read) {
  drafter_->accept({token}, 0);
  if (!is_read) unread_.push_back(token);
}

void RowDrafts::propose(int tokens_left) {
  outlook_ = drafter_->outlook();
  const int count = std::min(length_.choose(outlook_), most(tokens_left));
  draft_ = count > 0 ? drafter_->propose(count) : std::nullopt;
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
  unread_ = {round.read.begin() + num_held, round.read.begin() + num_stay};
  round.tokens.resize(num_given);
  unread_.insert(
      unread_.end(), round.tokens.begin() + num_kept, round.tokens.end());
  drafter_->accept(round.tokens, num_kept);
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
