// Whole generations above temperature 0: what follows each token is distributed
// as the model says, with drafts as without.
#include <cmath>

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

struct Outcome {
  int accepted = 0;
  double misfit = 0;  // chi-square over its 99.9 % quantile
};

Outcome run(const ModelPtr& draft, GenerateOptions options, int num_tokens) {
  auto model = std::make_shared<TableModel>(1);
  constexpr int kSize = TableModel::kVocabulary;
  options.max_tokens = num_tokens;
  seed(11);
  auto generator = speculative_generate_step({0}, model, draft, options);
  std::vector<std::vector<double>> counts(kSize, std::vector<double>(kSize));
  int before = 0;
  while (auto step = generator->next()) {
    ++counts[before][step->token];
    before = step->token;
  }
  Sampling sampling(options);
  double chi_square = 0;
  double freedom = 0;
  for (int token = 0; token < kSize; ++token) {
    auto weights =
        sampling.log_weights(sampling.logprobs(model->logits_after(token)));
    auto p = mx::contiguous(mx::softmax(weights, -1));
    p.eval();
    double total = 0;
    for (double count : counts[token]) total += count;
    freedom -= 1;
    for (int next = 0; next < kSize; ++next) {
      const double expected = total * p.data<float>()[next];
      const double count = counts[token][next];
      if (expected == 0) {
        EXPECT_EQ(count, 0);
        continue;
      }
      freedom += 1;
      chi_square += std::pow(count - expected, 2) / expected;
    }
  }
  const double quantile =
      freedom *
      std::pow(1 - 2 / (9 * freedom) + 3.09 * std::sqrt(2 / (9 * freedom)), 3);
  return {generator->speculation()->accepted_tokens, chi_square / quantile};
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
  EXPECT_LT(with_model.misfit, 1);
  Outcome with_ngrams = run(nullptr, options, 1500);
  EXPECT_LT(with_ngrams.misfit, 1);
  if (GetParam() > 0) {
    EXPECT_GT(with_model.accepted, 300);
    EXPECT_GT(with_ngrams.accepted, 100);
  }
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
      EXPECT_LT(run(draft, options, 800).misfit, 1);
    }
  }
}

}  // namespace
}  // namespace mlxlm
