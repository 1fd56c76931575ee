// Rows that draft against the same requests alone, without drafts.
#include <gtest/gtest.h>

#include <mlxlm/batch.h>

#include "batch/batch_fixture.h"

namespace mlxlm {
namespace {

using RowDraftsTest = BatchTest;

const char kRepeats[] = "one two three, one two four, one two three, ";

// Rows that draft, with rows that don't, over every kind of cache: the tokens
// are those of the same requests alone and without drafts.
TEST_F(RowDraftsTest, DraftsChangeNothing) {
  for (auto toy : {ToyOptions{.seed = 11},
                   ToyOptions{.seed = 12, .window_tokens = 12},
                   ToyOptions{.seed = 15, .recurrent = true}}) {
    model_ = std::make_shared<ToyModel>(toy);
    std::vector<BatchRequest> requests;
    for (int i = 0; i < 6; ++i) {
      GenerateOptions options{.max_tokens = 12 + 3 * i, .ignore_eos = true};
      if (i % 4 == 1) options.max_kv_size = 24;
      if (i % 4 == 2) {
        options.kv_bits = 8;
        options.kv_group_size = 32;
        options.quantized_kv_start = 61;
      }
      if (i % 4 == 3) {
        options.logits_processors =
            make_logits_processors({.repetition_penalty = 1.1});
      }
      requests.push_back(request(std::string(kRepeats).substr(i), options));
    }
    BatchGenerator batch(model_, tokenizer_);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      auto drafting = requests[i];
      if (i != 5) drafting.options.draft = DraftKind::ngram;
      if (i > 2) drafting.options.num_draft_tokens = static_cast<int>(i) - 1;
      batch.insert(drafting);
    }
    auto rows = run(batch);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(i);
      expect_alone(requests[i], rows[i]);
    }
  }
}

TEST_F(RowDraftsTest, DraftsAreCutAtTheEnd) {
  const auto whole =
      alone(request(kRepeats, {.max_tokens = 40, .ignore_eos = true}));
  for (int count : {1, 13, 14, 16}) {
    PromptCache cache;
    GenerateOptions options{
        .max_tokens = 40, .prompt_cache = &cache, .ignore_eos = true};
    options.draft = DraftKind::ngram;
    options.num_draft_tokens = 5;
    const bool limited = count % 2 == 0;
    if (limited) {
      options.max_tokens = count;
    } else {
      options.stop_sequences = {
          {whole.tokens.begin(), whole.tokens.begin() + count}};
    }
    BatchGenerator batch(model_, tokenizer_);
    batch.insert(request(kRepeats, options));
    batch.insert(request("another", {.max_tokens = 30, .ignore_eos = true}));
    std::vector<int> tokens;
    std::optional<SpeculationStatistics> statistics;
    while (!batch.empty()) {
      for (const auto& [row, part, error] : batch.next()) {
        if (row != 0) continue;
        if (part.token >= 0) tokens.push_back(part.token);
        if (part.speculation) statistics = part.speculation;
      }
    }
    SCOPED_TRACE(count);
    EXPECT_EQ(tokens.size(), static_cast<std::size_t>(count));
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), whole.tokens.begin()));
    EXPECT_EQ(prompt_cache_offset(cache),
              static_cast<int>(bytes_of(kRepeats).size()) + count);
    ASSERT_TRUE(statistics);
    if (count > 10) {
      EXPECT_GT(statistics->accepted_tokens, 0);
    }
    // It goes on as one that was read alone.
    auto rest =
        alone({bytes_of(" and"), {.max_tokens = 5, .prompt_cache = &cache}});
    auto text = bytes_of(kRepeats);
    text.insert(text.end(), tokens.begin(), tokens.end());
    for (int token : bytes_of(" and")) text.push_back(token);
    EXPECT_EQ(rest.tokens, alone({text, {.max_tokens = 5}}).tokens);
  }
}

TEST_F(RowDraftsTest, ExtractedCachesLackWhatIsUnread) {
  GenerateOptions options{.max_tokens = 40, .ignore_eos = true};
  options.draft = DraftKind::ngram;
  options.num_draft_tokens = 3;
  BatchGenerator batch(model_, tokenizer_);
  const RowId row = batch.insert(request(kRepeats, options));
  for (int i = 0; i < 12; ++i) {
    batch.next();
    auto [cache, tokens] = batch.extract_cache(row);
    EXPECT_EQ(prompt_cache_offset(cache), static_cast<int>(tokens.size()));
  }
}

}  // namespace
}  // namespace mlxlm
