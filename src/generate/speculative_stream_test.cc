// Where an answer ends inside of an accepted draft: exactly where it would end
// without, and the cache has read exactly what was given out.
#include <gtest/gtest.h>

#include <mlxlm/generate.h>

#include "generate/toy.h"

namespace mlxlm {
namespace {

constexpr int kDrafts = 5;
// Places in the answer, at the beginning, within and at the end of drafts.
constexpr int kPlaces[] = {1, 2, 3, 5, 6, 8, 11};
const std::vector<int> kPrompt = bytes_of("one two, one two, one two, ");

struct Kind {
  const char* name;
  ToyOptions model;
  DraftKind draft;
};

struct Answer {
  std::vector<int> tokens;
  std::string text;
  std::string finish_reason;
  bool operator==(const Answer&) const = default;
};

class SpeculativeStream : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    auto toy = GetParam().model;
    if (GetParam().draft == DraftKind::mtp) toy.head_noise = 0.0f;
    model_ = std::make_shared<ToyModel>(toy);
    plain_ = answer({.max_tokens = 24}, nullptr);
  }

  GenerateOptions drafting(GenerateOptions options) const {
    options.draft = GetParam().draft;
    options.num_draft_tokens = kDrafts;
    if (options.draft == DraftKind::model) options.draft_model = model_;
    return options;
  }

  // Cancelled after so many tokens, if told so.
  Answer answer(GenerateOptions options,
                PromptCache* cache,
                int cancel_after = -1) {
    options.prompt_cache = cache;
    options.cancel = {};
    Answer answer;
    for (const auto& part :
         stream_generate(model_, tokenizer_, kPrompt, options)) {
      if (part.token >= 0) answer.tokens.push_back(part.token);
      answer.text += part.text;
      answer.finish_reason = part.finish_reason;
      if (static_cast<int>(answer.tokens.size()) == cancel_after) {
        options.cancel.cancel();
      }
      if (part.speculation) accepted_ += part.speculation->accepted_tokens;
    }
    return answer;
  }

  // With drafts as without, and again from the caches.
  void compare(const GenerateOptions& options, int cancel_after = -1) {
    PromptCache plain_cache;
    PromptCache cache;
    const auto expected = answer(options, &plain_cache, cancel_after);
    EXPECT_EQ(answer(drafting(options), &cache, cancel_after), expected);
    cache.resize(plain_cache.size());
    EXPECT_EQ(prompt_cache_offset(cache), prompt_cache_offset(plain_cache));
    auto on = [&](PromptCache& from) {
      GenerateOptions more{.max_tokens = 6, .prompt_cache = &from};
      std::vector<int> tokens;
      auto generator = generate_step({'x'}, model_, more);
      while (auto step = generator->next()) tokens.push_back(step->token);
      return tokens;
    };
    EXPECT_EQ(on(cache), on(plain_cache));
  }

  ModelPtr model_;
  std::shared_ptr<ToyTokenizer> tokenizer_ = std::make_shared<ToyTokenizer>();
  Answer plain_;
  int accepted_ = 0;
};

INSTANTIATE_TEST_SUITE_P(
    Kinds,
    SpeculativeStream,
    ::testing::Values(
        Kind{"Model", {.seed = 1}, DraftKind::model},
        Kind{"ModelWindow", {.seed = 2, .window_tokens = 8}, DraftKind::model},
        Kind{
            "ModelRecurrent", {.seed = 3, .recurrent = true}, DraftKind::model},
        Kind{"HeadRecurrent", {.seed = 4, .recurrent = true}, DraftKind::mtp},
        Kind{"Ngram", {.seed = 11}, DraftKind::ngram},
        Kind{
            "NgramWindow", {.seed = 12, .window_tokens = 8}, DraftKind::ngram}),
    [](const auto& info) { return info.param.name; });

TEST_P(SpeculativeStream, MaxTokensAndCancellingCutADraft) {
  for (int count : kPlaces) {
    SCOPED_TRACE(count);
    compare({.max_tokens = count});
    compare({.max_tokens = 24}, count);
  }
  EXPECT_GT(accepted_, 4);
}

TEST_P(SpeculativeStream, StopsCutADraft) {
  for (int at : kPlaces) {
    SCOPED_TRACE(at);
    GenerateOptions options{.max_tokens = 24};
    options.stop_sequences = {{plain_.tokens[at], plain_.tokens[at + 1]}};
    compare(options);
    options.stop_sequences.clear();
    if (plain_.tokens[at] < 128) {
      options.stop_texts = {std::string(1, char(plain_.tokens[at]))};
      compare(options);
    }
  }
  EXPECT_GT(accepted_, 4);
}

TEST_P(SpeculativeStream, EndsOfSequenceCutADraft) {
  for (int at : kPlaces) {
    SCOPED_TRACE(at);
    tokenizer_->set_eos_token_ids({plain_.tokens[at]});
    compare({.max_tokens = 24});
  }
  // N-grams propose what was there before, where the answer would have ended.
  if (GetParam().draft != DraftKind::ngram) {
    EXPECT_GT(accepted_, 4);
  }
}

}  // namespace
}  // namespace mlxlm
