// Drafts of one row, which a pass checks together with the others' tokens.
//
// Either a token of the row is under way, as in rows without drafts, or all
// that was drawn is known: then the next pass reads what is unread of it and a
// draft.
//
// Invariant: the drafter knows every token that the cache has read and those
// that are unread here.
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
  // The cache, the model's, and the options outlive this.
  RowDrafts(ModelPtr model, PromptCache& cache, const GenerateOptions& options);
  ~RowDrafts();
  RowDrafts(const RowDrafts&) = delete;
  RowDrafts& operator=(const RowDrafts&) = delete;

  // A text begins with caches of who drafts, if it has some: first of all, and
  // anew after a preemption. What was measured stays.
  void start(PromptCache draft_cache);
  // The caches have read these before the text.
  void begin(const std::vector<int>& earlier);
  // The cache has read more of the prompt.
  void add_prompt(const std::vector<int>& tokens);
  // States [1, L, D] that the model left of the tokens of a pass.
  bool wants_states() const { return drafter_->wants_states(); }
  void read_states(const mx::array& states);
  // As Drafter's.
  int read_ahead(int most) { return drafter_->read_ahead(most); }

  // The prompt is read.
  void begin_answer() { see_all_stepwise(cache_, true); }

  // Whether a draft would follow now, so that a token under way is to be waited
  // for.
  bool wants(int tokens_left) const { return num_wanted(tokens_left) > 0; }
  // How many tokens it would have.
  int num_wanted(int tokens_left) const;

  // A token that was drawn without a draft; whether the cache has read it.
  void add(int token, bool is_read);

  // What the next pass is to read, [L] with `num_drafts()` drafts at its end.
  // Before a pass, where no token is under way.
  Drafter& drafter() { return *drafter_; }
  void set_draft(std::optional<Draft> draft);
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

  // Between passes. The cache reads what is unread; no pass will.
  void read_rest();
  // Brings the caches of who drafts to where the row's is; false: they can't.
  bool level() { return drafter_->read_up_to(num_unread()); }
  PromptCache draft_cache() const { return drafter_->cache(); }

  // How long a pass took whose other parts have nothing to do with it.
  void note_seconds(double seconds);

  const SpeculationStatistics& statistics() const;

 private:
  int most(int tokens_left) const;

  ModelPtr model_;
  PromptCache& cache_;
  const GenerateOptions& options_;
  std::unique_ptr<Drafter> drafter_;
  DraftLength length_;
  mutable SpeculationStatistics statistics_;
  int num_read_ = 0;  // of the text, where states are told of
  std::vector<int> unread_;
  std::optional<Draft> draft_;
  int outlook_ = 0;
  ReturnPoint point_;
  std::optional<Round> round_;
  std::optional<Round> timed_;  // whose time isn't noted yet
};

}  // namespace mlxlm
