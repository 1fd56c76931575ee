#include "generate/round.h"

#include <algorithm>
#include <climits>

#include "cache/rotating_cache.h"
#include "generate/options.h"

namespace mlxlm {

int Round::num_kept(int num_given) const {
  const int most = std::min(num_drafts(), num_given);
  int num_kept = 0;
  while (num_kept < most && tokens[num_kept] == read[num_unread + num_kept]) {
    ++num_kept;
  }
  return num_kept;
}

Round begin_round(std::vector<int> unread,
                  const mx::array& drafts,
                  const std::vector<StepResult>& results) {
  Round round{.read = std::move(unread)};
  round.num_unread = static_cast<int>(round.read.size());
  round.read.insert(
      round.read.end(), drafts.data<int>(), drafts.data<int>() + drafts.size());
  for (const auto& result : results) {
    round.tokens.push_back(result.token);
  }
  return round;
}

void count_round(const Round& round, SpeculationStatistics& statistics) {
  auto& s = statistics;
  ++s.rounds;
  s.drafted_tokens += round.num_drafts();
  s.accepted_tokens += round.num_accepted();
  const auto size = static_cast<std::size_t>(round.num_drafts());
  s.drafted_at.resize(std::max(s.drafted_at.size(), size));
  s.accepted_at.resize(s.drafted_at.size());
  for (int i = 0; i < round.num_drafts(); ++i) {
    s.drafted_at[i] += 1;
    s.accepted_at[i] += i < round.num_accepted() ? 1 : 0;
  }
}

int readable_drafts(const PromptCache& cache,
                    int num_unread,
                    const GenerateOptions& options) {
  if (!kv_quantization(options)) {
    return INT_MAX;
  }
  int most = INT_MAX;
  for (const auto& layer : cache) {
    // Up to a token less: what is taken back must not have begun it.
    const int left =
        options.quantized_kv_start - 1 - layer->offset() - num_unread;
    if (layer->capabilities().quantizable) {
      most = std::min(most, std::max(left, 0));
    }
  }
  return most;
}

void see_all_stepwise(const PromptCache& cache, bool on) {
  for (const auto& layer : cache) {
    see_stepwise(*layer, on);
  }
}

}  // namespace mlxlm
