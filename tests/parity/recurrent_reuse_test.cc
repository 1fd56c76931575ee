// Recurrent models can't be cut short: what goes back to a checkpoint (prefix
// stores, speculation) gives the tokens of the plain run.
#include <cstdlib>
#include <filesystem>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/generate.h>

#include "cache/rows.h"
#include "generate/memory_estimate.h"

namespace mlxlm::parity {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;

class RecurrentReuse : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* models = std::getenv("MLXLM_PARITY_MODELS");
    if (models == nullptr) GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set";
    if (fs::exists(fs::path(models) / "SKIPPED")) GTEST_SKIP() << "no models";
    model_ = load_model((fs::path(models) / GetParam() / "visible").string());
    options_.max_tokens = 40;
    options_.ignore_eos = true;
  }

  // Also what the last part says of the run.
  std::vector<int> run(const std::vector<int>& prompt,
                       const GenerateOptions& options) {
    std::vector<int> tokens;
    for (auto& part : stream_generate(model_, nullptr, prompt, options)) {
      if (part.token >= 0) tokens.push_back(part.token);
      last_ = part;
    }
    return tokens;
  }

  // The same few tokens again and again, which n-grams foresee.
  static std::vector<int> prompt() {
    std::vector<int> tokens;
    for (int i = 0; i < 60; ++i) tokens.push_back(1 + i * i % 7);
    return tokens;
  }

  ModelPtr model_;
  GenerateOptions options_;
  GenerationResponse last_;
};

TEST_P(RecurrentReuse, PrefixesAreReadOnce) {
  auto text = prompt();
  const auto first = run(text, options_);
  auto warm = options_;
  warm.prefix_store = std::make_shared<PrefixStore>();
  EXPECT_EQ(run(text, warm), first);
  EXPECT_EQ(run(text, warm), first);
  EXPECT_EQ(last_.reused_tokens, static_cast<int>(text.size()) - 1);
  text.insert(text.end(), first.begin(), first.end());
  text.push_back(5);
  EXPECT_EQ(run(text, warm), run(text, options_));
}

TEST_P(RecurrentReuse, RejectedDraftsLeaveNoTrace) {
  auto drafting = options_;
  drafting.draft = DraftKind::ngram;
  drafting.num_draft_tokens = 4;
  const auto plain = run(prompt(), options_);
  EXPECT_EQ(run(prompt(), drafting), plain);
  ASSERT_TRUE(last_.speculation);
  EXPECT_GT(last_.speculation->drafted_tokens,
            last_.speculation->accepted_tokens);
}

TEST_P(RecurrentReuse, EstimatesGrowWithTheTokensAttendedTo) {
  const auto cache = model_->make_cache();
  std::vector<std::size_t> held;
  for (int i = 0; i < 2; ++i) {  // as many as caches make room for at once
    model_->forward(mx::full({1, kCacheStepTokens}, 3, mx::int32), cache);
    held.push_back(0);
    for (const auto& layer : cache) held.back() += layer->nbytes();
  }
  const CacheEstimate estimate(*model_, {});
  EXPECT_EQ(estimate.bytes(kCacheStepTokens), held[0]);
  EXPECT_EQ(estimate.bytes(2 * kCacheStepTokens), held[1]);
}

INSTANTIATE_TEST_SUITE_P(
    Recurrent,
    RecurrentReuse,
    testing::Values("falcon_h1", "lfm2", "qwen3_next", "rwkv7"),
    [](const auto& info) { return info.param; });

}  // namespace
}  // namespace mlxlm::parity
