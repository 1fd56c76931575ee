#include "generate/draft_length.h"

#include <algorithm>

namespace mlxlm {
namespace {

// Plain steps before the first draft.
constexpr int kFirstPlain = 3;
// Rounds after which a plain step's time is measured anew.
constexpr int kRoundsBetween = 64;
// What may be lost: a share of the time, and so many steps at once.
constexpr double kLossShare = 0.025;
constexpr double kMostLost = 1;
// Gains that may be lost again, in steps.
constexpr double kCredit = 3;
// How fast older measurements are forgotten.
constexpr double kTimeWeight = 0.2;
constexpr double kShareMemory = 0.9;
// Until it is measured: what a draft adds to a plain step.
constexpr double kGuessedSlope = 0.2;
// Gain from which a round is preferred: less would be within the noise.
constexpr double kLeastGain = 1.03;

// What is believed at first: by outlook, worth one draft. Of what follows a
// longer match more is accepted.
constexpr std::array<double, kNumOutlooks> kFirstShares = {
    0, 0.5, 0.5, 0.6, 0.7, 0.75, 0.85, 0.9};

// Moves an average, where single long times are somebody else's doing.
void follow(double& average, double value, double weight = kTimeWeight) {
  average = average == 0
                ? value
                : average + weight * (std::min(value, 2 * average) - average);
}

}  // namespace

DraftLength::DraftLength(std::optional<int> fixed) : fixed_(fixed) {
  for (int i = 0; i < kNumOutlooks; ++i) {
    shares_[i] = {kFirstShares[i], 1};
  }
}

bool DraftLength::may_lose() const {
  return lost_seconds_ <= kMostLost * plain_seconds_;
}

// Measured, or in a line with the nearest that is.
double DraftLength::round_seconds(int num_drafts) const {
  if (round_seconds_[num_drafts] > 0) {
    return round_seconds_[num_drafts];
  }
  int below = num_drafts;
  while (below > 0 && round_seconds_[below] == 0) --below;
  int above = num_drafts;
  while (above <= kMaxDrafts && round_seconds_[above] == 0) ++above;
  const double from = below > 0 ? round_seconds_[below] : plain_seconds_;
  if (above <= kMaxDrafts) {
    return from + (round_seconds_[above] - from) * (num_drafts - below) /
                      (above - below);
  }
  const double slope = below > 0 ? std::max(from - plain_seconds_, 0.0) / below
                                 : kGuessedSlope * plain_seconds_;
  return from + slope * (num_drafts - below);
}

int DraftLength::best(double share) const {
  int best = 0;
  double best_rate = kLeastGain / plain_seconds_;
  double tokens = 1;  // expected of a round
  double reached = 1;
  for (int k = 1; k <= kMaxDrafts; ++k) {
    reached *= share;
    tokens += reached;
    const double rate = tokens / round_seconds(k);
    if (rate > best_rate) {
      best = k;
      best_rate = rate;
    }
  }
  return best;
}

int DraftLength::choose(int outlook) const {
  if (outlook == kNoOutlook) {
    return 0;
  }
  if (fixed_) {
    return *fixed_;
  }
  if (num_plain_ < kFirstPlain || rounds_since_plain_ >= kRoundsBetween ||
      !may_lose()) {
    return 0;
  }
  const Share& share = shares_[outlook];
  return std::max(best(share.accepted / share.tried), 1);
}

void DraftLength::note_plain(double seconds) {
  ++num_plain_;
  rounds_since_plain_ = 0;
  // What all is compared with: the mean at first, then slowly on.
  follow(plain_seconds_, seconds, std::max(1.0 / num_plain_, 0.1));
  charge(seconds, seconds, 1);
}

void DraftLength::note_round(int outlook,
                             int num_drafts,
                             int num_accepted,
                             double seconds) {
  ++rounds_since_plain_;
  Share& share = shares_[outlook];
  const bool all = num_accepted == num_drafts;
  share.accepted = share.accepted * kShareMemory + num_accepted;
  share.tried = share.tried * kShareMemory + num_accepted + (all ? 0 : 1);
  if (num_drafts <= kMaxDrafts) {
    follow(round_seconds_[num_drafts], seconds);
  }
  charge(seconds, (num_accepted + 1) * plain_seconds_, num_accepted + 1);
}

void DraftLength::note_other(double seconds) {
  charge(seconds, plain_seconds_, 1);
}

void DraftLength::charge(double seconds, double plain_seconds, int num_tokens) {
  total_seconds_ += seconds;
  num_tokens_ += num_tokens;
  if (num_plain_ == 0) {
    return;
  }
  lost_seconds_ += seconds - plain_seconds - kLossShare * seconds;
  lost_seconds_ = std::max(lost_seconds_, -kCredit * plain_seconds_);
}

}  // namespace mlxlm
