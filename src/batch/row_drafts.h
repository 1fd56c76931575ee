// Drafts of one row, which a pass checks together with the others' tokens.
//
// Either a token of the row is under way, as in rows without drafts, or all
// that was drawn is known: then the next pass reads what is unread of it and a
// draft.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <mlxlm/generate.h>

#include "generate/draft_length.h"
#include "generate/drafter.h"
#include "generate/return_point.h"
#include "generate/round.h"
#include "generate/sampling.h"

namespace mlxlm {

class RowDrafts {
 public:
  // Both outlive this.
  RowDrafts(PromptCache& cache, const GenerateOptions& options);
  ~RowDrafts();
  RowDrafts(const RowDrafts&) = delete;
  RowDrafts& operator=(const RowDrafts&) = delete;

  // The text so far, which the cache has read; the first time only.
  void begin(const std::vector<int>& text);

  // Whether a draft would follow now, so that a token under way is to be waited
  // for.
  bool wants(int tokens_left) const;

  // A token that was drawn without a draft; whether the cache has read it.
  void add(int token, bool is_read);

  // What the next pass is to read, [L] with `num_drafts()` drafts at its end.
  // Before a pass, where no token is under way.
  void propose(int tokens_left);
  mx::array tokens() const;
  int num_tokens() const;
  int num_drafts() const { return draft_ ? draft_->size() : 0; }
  bool has_unread() const { return !unread_.empty(); }
  int num_unread() const { return static_cast<int>(unread_.size()); }

  // Without drafts: the pass has read what was unread.
  void note_read() { unread_.clear(); }

  // After the pass: what stands of the draft, from logits [N + 1, V].
  std::vector<StepResult> check(const mx::array& logits, Sampling& sampling);
  // Of that so many tokens were given out; the others are taken back.
  void keep(int num_given);

  // How long a pass took whose other parts have nothing to do with it.
  void note_seconds(double seconds);

  const SpeculationStatistics& statistics() const;

 private:
  int most(int tokens_left) const;

  PromptCache& cache_;
  const GenerateOptions& options_;
  std::unique_ptr<Drafter> drafter_;
  DraftLength length_;
  mutable SpeculationStatistics statistics_;
  bool begun_ = false;
  std::vector<int> unread_;
  std::optional<Draft> draft_;
  int outlook_ = 0;
  ReturnPoint point_;
  std::optional<Round> round_;
  std::optional<Round> timed_;  // whose time isn't noted yet
};

}  // namespace mlxlm
