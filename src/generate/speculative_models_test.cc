// Speculation on random models of real kinds of layers: 500 tokens as without,
// and more from the saved cache.
#include <gtest/gtest.h>

#include <mlxlm/generate.h>

#include "generate/draft_kinds.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using namespace draft_kinds;

constexpr int kTokens = 500;
constexpr int kTokensAfter = 150;

struct Run {
  std::vector<int> tokens;
  int accepted = 0;
  int drafted = 0;
};

Run run(TokenGenerator& generator) {
  Run run;
  while (auto step = generator.next()) run.tokens.push_back(step->token);
  if (const auto* speculation = generator.speculation()) {
    run.accepted = speculation->accepted_tokens;
    run.drafted = speculation->drafted_tokens;
  }
  return run;
}

class SpeculationOfModels
    : public ::testing::TestWithParam<std::pair<Kind, Cell>> {
 protected:
  void SetUp() override {
    const auto& [kind, cell] = GetParam();
    model_ = make_random(kind);
    near_ = make_near(kind);
    options_ = options_of(cell, kTokens);
    for (int i = 0; i < 17; ++i) prompt_.push_back(i * 7 % kVocabulary);
    options_.prompt_cache = &plain_cache_;
    plain_ = run(*generate_step(prompt_, model_, options_)).tokens;
    options_.max_tokens = kTokensAfter;
    plain_after_ = run(*generate_step(kTurn, model_, options_)).tokens;
  }

  // The first run takes so many drafts each time; the other, from the saved
  // cache, as many as pay.
  void compare(const ModelPtr& draft, DraftKind kind, int num_drafts) {
    PromptCache cache;
    auto options = options_;
    options.draft = kind;
    options.prompt_cache = &cache;
    options.max_tokens = kTokens;
    options.num_draft_tokens = num_drafts;
    auto first =
        run(*speculative_generate_step(prompt_, model_, draft, options));
    EXPECT_EQ(first.tokens, plain_);
    EXPECT_GT(first.accepted, 0);
    EXPECT_LT(first.accepted, first.drafted);
    TemporaryFolder folder;
    save_prompt_cache(folder / "cache.safetensors", cache);
    cache = load_prompt_cache(folder / "cache.safetensors").first;
    options.num_draft_tokens.reset();
    options.max_tokens = kTokensAfter;
    EXPECT_EQ(
        run(*speculative_generate_step(kTurn, model_, draft, options)).tokens,
        plain_after_);
    for (std::size_t i = 0; i < plain_cache_.size(); ++i) {
      EXPECT_EQ(cache[i]->offset(), plain_cache_[i]->offset());
      EXPECT_EQ(cache[i]->kind(), plain_cache_[i]->kind());
    }
  }

  const std::vector<int> kTurn{3, 4, 5};
  std::vector<int> prompt_;
  ModelPtr model_;
  ModelPtr near_;
  GenerateOptions options_;
  PromptCache plain_cache_;
  std::vector<int> plain_, plain_after_;
};

INSTANTIATE_TEST_SUITE_P(Cells,
                         SpeculationOfModels,
                         ::testing::ValuesIn(cells()),
                         [](const auto& info) {
                           return std::string(info.param.first.type) +
                                  info.param.second.name;
                         });

TEST_P(SpeculationOfModels, GivesTheSameTokens) {
  compare(nullptr, DraftKind::ngram, 5);
  compare(near_, DraftKind::model, 4);
  if (model_->draft_head() != nullptr) {
    compare(nullptr, DraftKind::mtp, 3);
  }
}

}  // namespace
}  // namespace mlxlm
