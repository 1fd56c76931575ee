// Whole generations above temperature 0: what follows each token is distributed
// as the model says, with drafts as without.
#include <array>
#include <cmath>
#include <numeric>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "generate/sampling.h"

namespace mlxlm {
namespace {

// The next token depends on the last one alone.
class TableModel : public Model {
 public:
  static constexpr int kVocabulary = 6;

  explicit TableModel(std::uint64_t seed, int vocabulary_size = kVocabulary)
      : table_(
            mx::multiply(mx::array(1.5f),
                         mx::random::normal({vocabulary_size, vocabulary_size},
                                            mx::random::key(seed)))) {
    table_.eval();
  }

  mx::array forward(const mx::array& tokens,
                    const PromptCache&,
                    const std::optional<mx::array>&) override {
    return mx::take(table_, tokens, 0);
  }
  mx::array embed(const mx::array& tokens) override { return tokens; }
  PromptCache make_cache(int) const override { return {}; }
  const nlohmann::json& config() const override { return config_; }
  std::string model_type() const override { return "table"; }
  int num_layers() const override { return 0; }
  int vocabulary_size() const override { return table_.shape(0); }
  int context_tokens() const override { return 0; }
  std::vector<Parameter> parameters() const override { return {}; }
  std::vector<int> eos_token_ids() const override { return {}; }

  mx::array logits_after(int token) const {
    return mx::slice(table_, {token, 0}, {token + 1, table_.shape(1)});
  }

 private:
  mx::array table_;
  nlohmann::json config_ = nlohmann::json::object();
};

constexpr int kSize = TableModel::kVocabulary;
using Counts = std::array<std::array<double, kSize>, kSize>;

// The chi-square statistic of what followed each token over the quantile that
// one in a million passes (Wilson and Hilferty 1931): where the time of a step
// chooses the drafts, every run draws other numbers. Tokens that are expected
// less than five times are one.
double misfit(const Counts& counts, const GenerateOptions& options) {
  TableModel model(1);
  Sampling sampling(options);
  double chi_square = 0;
  double freedom = 0;
  for (int token = 0; token < kSize; ++token) {
    auto weights =
        sampling.log_weights(sampling.logprobs(model.logits_after(token)));
    auto p = mx::contiguous(mx::softmax(weights, -1));
    p.eval();
    const auto& row = counts[token];
    const double total = std::accumulate(row.begin(), row.end(), 0.0);
    double rare = 0;
    double rare_expected = 0;
    auto compare = [&](double count, double expected) {
      freedom += 1;
      chi_square += std::pow(count - expected, 2) / expected;
    };
    for (int next = 0; next < kSize; ++next) {
      const double expected = total * p.data<float>()[next];
      if (expected >= 5) {
        compare(row[next], expected);
      } else if (expected > 0) {
        rare += row[next];
        rare_expected += expected;
      } else {
        EXPECT_EQ(row[next], 0);
      }
    }
    if (rare_expected >= 1) compare(rare, rare_expected);
    freedom -= 1;
  }
  const double quantile =
      freedom *
      std::pow(1 - 2 / (9 * freedom) + 4.75 * std::sqrt(2 / (9 * freedom)), 3);
  return chi_square / quantile;
}

struct Outcome {
  int accepted = 0;
  Counts counts{};
};

Outcome run(const ModelPtr& draft, GenerateOptions options, int num_tokens) {
  auto model = std::make_shared<TableModel>(1);
  options.max_tokens = num_tokens;
  seed(11);
  auto generator = speculative_generate_step({0}, model, draft, options);
  Outcome outcome;
  int before = 0;
  while (auto step = generator->next()) {
    ++outcome.counts[before][step->token];
    before = step->token;
  }
  outcome.accepted = generator->speculation()->accepted_tokens;
  return outcome;
}

class SpeculativeSampling : public ::testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(DraftTokens,
                         SpeculativeSampling,
                         ::testing::Values(0, 1, 4));

TEST_P(SpeculativeSampling, KeepsTheDistribution) {
  GenerateOptions options{
      .sampler = make_sampler({.temperature = 0.9, .top_p = 0.95})};
  if (GetParam() > 0) {
    options.num_draft_tokens = GetParam();
  }
  auto draft = std::make_shared<TableModel>(2);
  Outcome with_model = run(draft, options, 1500);
  EXPECT_LT(misfit(with_model.counts, options), 1);
  Outcome with_ngrams = run(nullptr, options, 1500);
  EXPECT_LT(misfit(with_ngrams.counts, options), 1);
  if (GetParam() > 0) {
    EXPECT_GT(with_model.accepted, 300);
    EXPECT_GT(with_ngrams.accepted, 100);
  }
  // Warmer draws would be found.
  options.sampler = make_sampler({.temperature = 1.35, .top_p = 0.97});
  EXPECT_GT(misfit(with_model.counts, options), 1);
  EXPECT_GT(misfit(with_ngrams.counts, options), 1);
}

// Rejection accepts more than two draws that happen to be equal.
TEST(SpeculativeSamplingRule, AcceptsWhatTheFormulaSays) {
  GenerateOptions options{.sampler = make_sampler({.temperature = 1.0})};
  options.num_draft_tokens = 1;
  auto same = std::make_shared<TableModel>(1);
  EXPECT_EQ(run(same, options, 400).accepted, 200);
  // A sampler that nothing is known of is right, too.
  options.sampler = [](const mx::array& logprobs) {
    return mx::random::categorical(logprobs);
  };
  auto model = std::make_shared<TableModel>(1);
  options.max_tokens = 400;
  auto generator = speculative_generate_step({0}, model, same, options);
  while (generator->next()) {
  }
  const int accepted = generator->speculation()->accepted_tokens;
  EXPECT_GT(accepted, 40);
  EXPECT_LT(accepted, 180);
}

// A draft model may have padding in its vocabulary, or less of it.
TEST(SpeculativeSamplingRule, VocabulariesOfOtherSizes) {
  GenerateOptions options{.sampler = make_sampler({.temperature = 1.0})};
  options.num_draft_tokens = 2;
  for (int size : {TableModel::kVocabulary - 1, TableModel::kVocabulary + 3}) {
    auto draft = std::make_shared<TableModel>(3, size);
    if (size > TableModel::kVocabulary) {
      EXPECT_LT(misfit(run(draft, options, 800).counts, options), 1);
    }
  }
}

}  // namespace
}  // namespace mlxlm
