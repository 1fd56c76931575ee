// Whether tokens that were drafted and accepted are distributed as the model's
// own: chi-square tests, with the draws of one seed.
#include "generate/acceptance.h"

#include <cmath>
#include <functional>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

namespace mlxlm {
namespace {

constexpr int kDraws = 60000;
constexpr int kVocabulary = 12;
const std::vector<int> kHistory = {1, 4, 4, 7, 1, 4};

mx::array logits_of(std::uint64_t seed, float scale) {
  auto noise = mx::random::normal({1, kVocabulary}, mx::random::key(seed));
  return mx::multiply(noise, mx::array(scale));
}

mx::array normalized(const mx::array& log_weights) {
  return mx::subtract(log_weights, mx::logsumexp(log_weights, -1, true));
}

// How many tokens a rule takes in place of those that were drawn with log q.
// log p, log q [B, V], tokens [B] -> [B].
using Rule = std::function<mx::array(
    const mx::array&, const mx::array&, const mx::array&)>;

mx::array rejection(const mx::array& log_p,
                    const mx::array& log_q,
                    const mx::array& tokens) {
  auto instead =
      mx::astype(mx::random::categorical(residual(log_p, log_q)), mx::int32);
  return mx::where(stands(log_p, log_q, tokens), tokens, instead);
}

struct Distributions {
  mx::array log_p;  // [1, V]
  mx::array log_q;
};

// With the samplers and processors of both sides.
Distributions distributions(const GenerateOptions& options) {
  Sampling sampling(options);
  sampling.add_history(kHistory);
  auto weights = [&](std::uint64_t seed, float scale) {
    return normalized(
        sampling.log_weights(sampling.logprobs(logits_of(seed, scale))));
  };
  return {weights(1, 1.5f), weights(2, 1.2f)};
}

// The chi-square statistic over its 99.9 % quantile (Wilson and Hilferty 1931):
// up to 1 the draws may be the distribution's.
double misfit(const Distributions& d, const Rule& rule) {
  mx::random::seed(7);
  auto rows = [](const mx::array& row) {
    return mx::broadcast_to(row, {kDraws, kVocabulary});
  };
  auto drafted =
      mx::astype(mx::random::categorical(d.log_q, -1, kDraws), mx::int32);
  auto taken = rule(rows(d.log_p), rows(d.log_q), mx::flatten(drafted));
  auto p = mx::contiguous(mx::exp(d.log_p));
  mx::eval(taken, p);
  std::vector<int> counts(kVocabulary, 0);
  for (int i = 0; i < kDraws; ++i) ++counts[taken.data<int>()[i]];
  double chi_square = 0;
  int freedom = -1;
  for (int token = 0; token < kVocabulary; ++token) {
    const double expected = p.data<float>()[token] * kDraws;
    if (expected == 0) {
      if (counts[token] > 0) return 1e9;  // can't be drawn
      continue;
    }
    ++freedom;
    chi_square += std::pow(counts[token] - expected, 2) / expected;
  }
  EXPECT_GT(freedom, 1);
  const double k = freedom;
  const double quantile =
      k * std::pow(1 - 2 / (9 * k) + 3.09 * std::sqrt(2 / (9 * k)), 3);
  return chi_square / quantile;
}

struct Case {
  const char* name;
  SamplerOptions sampler;
  PenaltyOptions penalties;
};

class Acceptance : public ::testing::TestWithParam<Case> {
 protected:
  GenerateOptions options() const {
    GenerateOptions options;
    options.sampler = make_sampler(GetParam().sampler);
    options.logits_processors = make_logits_processors(GetParam().penalties);
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(
    Samplers,
    Acceptance,
    ::testing::Values(
        Case{"temperature", {.temperature = 1.0}, {}},
        Case{"cold", {.temperature = 0.6}, {}},
        Case{"hot", {.temperature = 2.5}, {}},
        Case{"topP", {.temperature = 0.9, .top_p = 0.85}, {}},
        Case{"minP", {.temperature = 1.1, .min_p = 0.08}, {}},
        Case{"topK", {.temperature = 1.0, .top_k = 5}, {}},
        Case{"penalties",
             {.temperature = 1.0},
             {.logit_bias = {{3, 1.5}},
              .repetition_penalty = 1.4,
              .frequency_penalty = 0.5}},
        Case{"all",
             {.temperature = 0.8, .top_p = 0.95, .min_p = 0.02, .top_k = 8},
             {.repetition_penalty = 1.2, .presence_penalty = 0.4}}),
    [](const auto& info) { return info.param.name; });

TEST_P(Acceptance, KeepsTheDistribution) {
  EXPECT_LT(misfit(distributions(options()), rejection), 1);
}

TEST_P(Acceptance, WrongRulesAreFound) {
  auto d = distributions(options());
  auto take_all = [](auto&, auto&, auto& tokens) { return tokens; };
  EXPECT_GT(misfit(d, take_all), 1);
  auto draw_again = [](auto& log_p, auto& log_q, auto& tokens) {
    auto again = mx::astype(mx::random::categorical(log_p), mx::int32);
    return mx::where(stands(log_p, log_q, tokens), tokens, again);
  };
  EXPECT_GT(misfit(d, draw_again), 1);
  auto always_likelier = [](auto& log_p, auto& log_q, auto& tokens) {
    auto at = mx::expand_dims(tokens, 1);
    auto likelier = mx::squeeze(mx::greater(mx::take_along_axis(log_p, at, 1),
                                            mx::take_along_axis(log_q, at, 1)),
                                1);
    auto instead =
        mx::astype(mx::random::categorical(residual(log_p, log_q)), mx::int32);
    return mx::where(likelier, tokens, instead);
  };
  EXPECT_GT(misfit(d, always_likelier), 1);
}

TEST(AcceptanceOfOneSide, ProcessorsOfOneSideOnlyAreFound) {
  GenerateOptions options{.sampler = make_sampler({.temperature = 1.0})};
  auto plain = distributions(options);
  options.logits_processors =
      make_logits_processors({.repetition_penalty = 1.4});
  auto penalized = distributions(options);
  Distributions mixed{penalized.log_p, penalized.log_q};
  // The ratio of the model's unpenalized distribution.
  EXPECT_GT(misfit(mixed,
                   [&](auto&, auto& log_q, auto& tokens) {
                     auto log_p = mx::broadcast_to(plain.log_p, log_q.shape());
                     return rejection(log_p, log_q, tokens);
                   }),
            1);
}

TEST(AcceptanceOfOneSide, EqualDistributionsStandAlways) {
  auto log_p = mx::broadcast_to(normalized(logits_of(1, 1.0f)), {1000, 12});
  auto tokens = mx::astype(mx::random::categorical(log_p), mx::int32);
  EXPECT_TRUE(mx::all(stands(log_p, log_p, tokens)).item<bool>());
  EXPECT_TRUE(mx::all(mx::isfinite(residual(log_p, log_p))).item<bool>());
}

}  // namespace
}  // namespace mlxlm
