// How many tokens to draft next.
#pragma once

#include <array>
#include <optional>

#include "generate/drafter.h"

namespace mlxlm {

// From what is measured in this generation: the share of accepted tokens of
// each outlook, and the time of a plain step and of a round with k drafts. The
// length with the most tokens per second wins; no draft is one of the choices.
//
// What rounds lose against plain steps is on account, which 2.5 % of the time
// pays off: so much is spent on finding out whether drafts pay again.
class DraftLength {
 public:
  static constexpr int kMaxDrafts = 16;

  // With a number: always that.
  explicit DraftLength(std::optional<int> fixed);

  // Drafts of the next round; 0: a plain step.
  int choose(int outlook) const;

  // A plain step, dispatched while the one before it ran.
  void note_plain(double seconds);
  // A round.
  void note_round(int outlook,
                  int num_drafts,
                  int num_accepted,
                  double seconds);
  // Other steps, which make room for a round.
  void note_other(double seconds);

  // Of a plain step; 0: not known.
  double plain_seconds() const { return plain_seconds_; }
  // Of all that was noted against plain steps; 0: not known.
  double speedup() const {
    return total_seconds_ > 0 ? num_tokens_ * plain_seconds_ / total_seconds_
                              : 0;
  }

 private:
  struct Share {
    double accepted = 0;
    double tried = 0;  // up to the first that wasn't
  };

  bool may_lose() const;
  double round_seconds(int num_drafts) const;
  int best(double share) const;
  void charge(double seconds, double plain_seconds, int num_tokens);

  std::optional<int> fixed_;
  std::array<Share, kNumOutlooks> shares_;
  std::array<double, kMaxDrafts + 1> round_seconds_{};  // 0: not measured
  double plain_seconds_ = 0;
  int num_plain_ = 0;
  double num_tokens_ = 0;
  int rounds_since_plain_ = 0;
  double total_seconds_ = 0;
  double lost_seconds_ = 0;  // not paid off yet
};

}  // namespace mlxlm
