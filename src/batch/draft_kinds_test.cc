// Rows that draft on random models of real kinds of layers: the tokens are
// those of the same requests alone and without drafts.
#include "generate/draft_kinds.h"

#include <algorithm>

#include <gtest/gtest.h>

#include <mlxlm/batch.h>

namespace mlxlm {
namespace {

using namespace draft_kinds;

constexpr int kTokens = 40;
constexpr int kRows = 4;

class DraftKinds : public ::testing::TestWithParam<std::pair<Kind, Cell>> {
 protected:
  void SetUp() override {
    const auto& [kind, cell] = GetParam();
    model_ = make_random(kind);
    near_ = make_near(kind);
    options_ = options_of(cell, kTokens);
    options_.quantized_kv_start = std::min(cell.quantized_start, 40);
    for (int i = 0; i < kRows; ++i) {
      auto alone = stream_generate(model_, nullptr, prompt(i), options(i));
      plain_.emplace_back();
      while (auto part = alone.next()) plain_[i].push_back(part->token);
    }
  }

  static std::vector<int> prompt(int row) {
    std::vector<int> prompt;
    for (int i = 0; i < 17 + row; ++i) {
      prompt.push_back((i * 7 + row) % kVocabulary);
    }
    return prompt;
  }

  GenerateOptions options(int row) const {
    GenerateOptions options = options_;
    options.max_tokens -= row;
    if (row == 3) {
      options.sampler = with_seed(make_sampler({.temperature = 0.5}), 7);
    }
    return options;
  }

  void compare(const ModelPtr& draft, DraftKind kind, int num_drafts) {
    BatchGenerator batch(model_, nullptr);
    std::vector<PromptCache> caches(kRows);
    for (int i = 0; i < kRows; ++i) {
      auto drafting = options(i);
      drafting.draft = kind;
      drafting.draft_model = draft;
      drafting.num_draft_tokens = num_drafts + i % 2;
      drafting.prompt_cache = &caches[i];
      batch.insert({prompt(i), drafting});
    }
    std::vector<std::vector<int>> tokens(kRows);
    int accepted = 0;
    while (!batch.empty()) {
      for (const auto& [row, part, error] : batch.next()) {
        EXPECT_EQ(error, "");
        if (part.token >= 0) tokens[row].push_back(part.token);
        if (part.speculation) accepted += part.speculation->accepted_tokens;
      }
    }
    EXPECT_GT(accepted, 0);
    for (int i = 0; i < kRows; ++i) {
      EXPECT_EQ(tokens[i], plain_[i]) << "row " << i;
      EXPECT_EQ(prompt_cache_offset(caches[i]), 17 + kTokens);
    }
  }

  ModelPtr model_;
  ModelPtr near_;
  GenerateOptions options_;
  std::vector<std::vector<int>> plain_;
};

INSTANTIATE_TEST_SUITE_P(
    Cells, DraftKinds, ::testing::ValuesIn(cells()), [](const auto& info) {
      return std::string(info.param.first.type) + info.param.second.name;
    });

TEST_P(DraftKinds, GiveTheSameTokensInABatch) {
  compare(near_, DraftKind::model, 3);
  if (model_->draft_head() != nullptr) {
    compare(nullptr, DraftKind::mtp, 2);
  }
}

}  // namespace
}  // namespace mlxlm
