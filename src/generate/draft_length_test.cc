#include "generate/draft_length.h"

#include <algorithm>
#include <cmath>
#include <random>

#include <gtest/gtest.h>

namespace mlxlm {
namespace {

// A model whose plain step takes 1, and a drafter of which a share of tokens is
// accepted.
struct World {
  double row_seconds = 0.15;   // of each token more in a pass
  double draft_seconds = 0.0;  // of each drafted token
  double share = 0.0;
  double noise = 0.05;

  double round_seconds(int num_drafts) const {
    return 1 + num_drafts * (row_seconds + draft_seconds);
  }

  // Tokens in the time of a plain step, with drafts of this length.
  double rate(int num_drafts) const {
    double tokens = 1;
    for (int i = 1; i <= num_drafts; ++i) tokens += std::pow(share, i);
    return tokens / round_seconds(num_drafts);
  }
  double best_rate() const {
    double best = 1;
    for (int k = 1; k <= DraftLength::kMaxDrafts; ++k) {
      best = std::max(best, rate(k));
    }
    return best;
  }
};

// Generates, and returns the time it takes. As the generator does: a step is
// dispatched ahead unless a draft is to follow.
double simulate(const World& world,
                int num_tokens,
                DraftLength& length,
                std::mt19937& random) {
  std::normal_distribution<double> noise(1, world.noise);
  std::uniform_real_distribution<double> uniform;
  double total = 0;
  bool ahead = false;
  for (int done = 0; done < num_tokens;) {
    const int count = length.choose(1);
    if (count == 0 || ahead) {
      const double seconds = std::max(noise(random), 0.1);
      const bool was_ahead = ahead;
      ahead = count == 0;
      was_ahead&& ahead ? length.note_plain(seconds)
                        : length.note_other(seconds);
      total += seconds;
      ++done;
      continue;
    }
    int accepted = 0;
    while (accepted < count && uniform(random) < world.share) ++accepted;
    const double seconds =
        world.round_seconds(count) * std::max(noise(random), 0.1);
    length.note_round(1, count, accepted, seconds);
    total += seconds;
    done += accepted + 1;
  }
  return total;
}

double speed(const World& world, int num_tokens, std::uint32_t seed = 1) {
  std::mt19937 random(seed);
  DraftLength length(std::nullopt);
  return num_tokens / simulate(world, num_tokens, length, random);
}

TEST(DraftLength, NothingAcceptedCostsFivePercentAtMost) {
  for (double draft_seconds : {0.0, 0.1, 0.5}) {
    for (double noise : {0.0, 0.1}) {
      for (int num_tokens : {100, 300, 1000, 10000}) {
        World world{.draft_seconds = draft_seconds, .noise = noise};
        EXPECT_GT(speed(world, num_tokens), 0.945)
            << draft_seconds << ' ' << noise << ' ' << num_tokens;
      }
    }
  }
}

TEST(DraftLength, ComesNearTheBestLength) {
  for (double share : {0.3, 0.6, 0.8, 0.9, 0.97}) {
    for (double draft_seconds : {0.0, 0.1, 0.3}) {
      World world{.draft_seconds = draft_seconds, .share = share};
      EXPECT_GT(speed(world, 20000), 0.9 * world.best_rate())
          << share << ' ' << draft_seconds;
    }
  }
}

TEST(DraftLength, DraftsThatDontPayAreLeft) {
  // Of each three one is accepted, and costs as much as a plain step.
  World world{.row_seconds = 0.3, .draft_seconds = 0.7, .share = 0.33};
  EXPECT_GT(speed(world, 1000), 0.945);
}

TEST(DraftLength, NoticesAChange) {
  std::mt19937 random(3);
  DraftLength length(std::nullopt);
  World bad{};
  World good{.share = 0.9};
  simulate(bad, 1000, length, random);
  const double seconds = simulate(good, 1000, length, random);
  EXPECT_GT(1000 / seconds, 0.8 * good.best_rate());
  EXPECT_LT(simulate(bad, 1000, length, random), 1060);
}

TEST(DraftLength, AFixedLengthStays) {
  DraftLength length(3);
  EXPECT_EQ(length.choose(1), 3);
  EXPECT_EQ(length.choose(kNoOutlook), 0);
  for (int i = 0; i < 20; ++i) length.note_round(1, 3, 0, 5.0);
  EXPECT_EQ(length.choose(1), 3);
}

TEST(DraftLength, KnowsTheSpeedUp) {
  DraftLength length(std::nullopt);
  EXPECT_EQ(length.speedup(), 0);
  for (int i = 0; i < 4; ++i) length.note_plain(0.5);
  EXPECT_DOUBLE_EQ(length.speedup(), 1);
  length.note_round(1, 3, 3, 0.5);
  EXPECT_DOUBLE_EQ(length.speedup(), 8 * 0.5 / 2.5);
}

}  // namespace
}  // namespace mlxlm
