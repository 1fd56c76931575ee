// What a pass read of a draft, and what came of it.
#pragma once

#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

// A model that must read kept tokens again may not pile them up.
inline constexpr std::size_t kMaxUnread = 8;

struct Round {
  std::vector<int> read;  // unread tokens, then the draft
  int num_unread = 0;
  std::vector<int> tokens;  // accepted, and the model's own

  int num_drafts() const { return static_cast<int>(read.size()) - num_unread; }
  int num_accepted() const { return static_cast<int>(tokens.size()) - 1; }

  // Of the draft, what stands where the first `num_given` tokens are given out.
  int num_kept(int num_given) const;
};

// Begins one: after `unread` tokens the draft was read.
Round begin_round(std::vector<int> unread,
                  const mx::array& drafts,
                  const std::vector<StepResult>& results);

void count_round(const Round& round, SpeculationStatistics& statistics);

// How many tokens after `num_unread` can be read at once and mean the same as
// one by one: quantization that begins at some length is the limit.
int readable_drafts(const PromptCache& cache,
                    int num_unread,
                    const GenerateOptions& options);

// From now on rotating caches that keep their first tokens show several tokens
// what each would see alone, or no more.
void see_all_stepwise(const PromptCache& cache, bool on);

}  // namespace mlxlm
