// Rows with a prefix store: the tokens of single runs, less to read.
#include <map>

#include <gtest/gtest.h>

#include <mlxlm/batch.h>

#include "batch/batch_fixture.h"

namespace mlxlm {
namespace {

// 70 tokens.
const std::string kSystem =
    "You are a system text that all of these rows have as their beginning. ";

class SharedPrefixes : public ::testing::Test {
 protected:
  void use(const ToyOptions& toy) { model_ = std::make_shared<ToyModel>(toy); }

  BatchRequest request(const std::string& text) const {
    BatchRequest request{.prompt = bytes_of(text), .options = options_};
    request.options.prefix_store = store_;
    return request;
  }

  std::vector<int> alone(const std::string& text) const {
    std::vector<int> tokens;
    auto stream = stream_generate(model_, nullptr, bytes_of(text), options_);
    while (auto part = stream.next()) tokens.push_back(part->token);
    return tokens;
  }

  // Answers them together; each must be as it is alone.
  BatchStats answer(const std::vector<std::string>& texts,
                    const BatchOptions& options = {}) {
    BatchGenerator batch(model_, nullptr, options);
    std::map<RowId, std::vector<int>> rows;
    for (const auto& text : texts) batch.insert(request(text));
    while (!batch.empty()) {
      for (const auto& [row, part, error] : batch.next()) {
        EXPECT_EQ(error, "");
        rows[row].push_back(part.token);
        reused_[row] = part.reused_tokens;
      }
    }
    for (std::size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(rows[i], alone(texts[i])) << "row " << i;
    }
    return batch.stats();
  }

  ModelPtr model_ = std::make_shared<ToyModel>();
  std::shared_ptr<PrefixStore> store_ = std::make_shared<PrefixStore>();
  GenerateOptions options_{.max_tokens = 6, .ignore_eos = true};
  std::map<RowId, int> reused_;
};

TEST_F(SharedPrefixes, RowsBeginWithWhatIsStored) {
  EXPECT_EQ(answer({kSystem + "one"}).prompt_tokens, 73u);
  // Of the prompt all but its last token is there, and of the other the text.
  auto stats = answer({kSystem + "one", kSystem + "other"});
  EXPECT_EQ(reused_[0], 72);
  EXPECT_EQ(reused_[1], 71);  // an "o" more
  EXPECT_EQ(stats.prompt_tokens, 1u + 4u);
  EXPECT_EQ(stats.reused_tokens, 72u + 71u);
}

TEST_F(SharedPrefixes, WhatIsBeingReadIsNotReadTwice) {
  const std::vector<std::string> texts{kSystem + "a long first question?",
                                       kSystem + "b",
                                       kSystem + "c2",
                                       "another text",
                                       kSystem + "d 3"};
  for (int chunk : {8, 2048}) {
    store_ = std::make_shared<PrefixStore>();
    auto stats = answer(
        texts, {.interleaved_tokens = chunk, .prefill_step_tokens = chunk});
    EXPECT_EQ(stats.prompt_tokens, 70u + 22 + 1 + 2 + 12 + 3);
    EXPECT_EQ(stats.reused_tokens, 3 * 70u);
  }
}

TEST_F(SharedPrefixes, EqualPromptsAreReadOnce) {
  auto stats = answer(std::vector<std::string>(6, kSystem));
  EXPECT_EQ(stats.prompt_tokens, 70u + 5);
}

// Rotating, recurrent and chunked caches are shared as of checkpoints.
TEST_F(SharedPrefixes, CachesThatCantBeCut) {
  for (auto toy : {ToyOptions{.window_tokens = 12},
                   ToyOptions{.recurrent = true},
                   ToyOptions{.chunk_tokens = 16}}) {
    use(toy);
    store_ = std::make_shared<PrefixStore>();
    options_.prompt_checkpoints = {70};
    options_.checkpoint_tokens = 50;
    auto stats = answer({kSystem + "one", kSystem + "two", kSystem + "three"},
                        {.prefill_step_tokens = 20});
    EXPECT_EQ(stats.prompt_tokens, 70u + 3 + 3 + 5);
    options_.prompt_checkpoints.clear();
    store_ = std::make_shared<PrefixStore>();
    stats = answer({kSystem + "one", kSystem + "two"});
    EXPECT_EQ(stats.prompt_tokens, 70u + 3 + 20 + 3);
  }
}

TEST_F(SharedPrefixes, QuantizedAndDraftingRows) {
  options_.kv_bits = 8;
  options_.kv_group_size = 32;
  options_.quantized_kv_start = 74;
  answer({kSystem + "one", kSystem + "two"});
  answer({kSystem + "one", kSystem + "two"});
  EXPECT_GT(reused_[0], 0);
  options_ = {.max_tokens = 30, .ignore_eos = true};
  options_.draft = DraftKind::ngram;
  options_.num_draft_tokens = 3;
  answer({kSystem + kSystem + "one", kSystem + kSystem + "two"});
  EXPECT_EQ(reused_[1], 140);
}

TEST_F(SharedPrefixes, PreemptedRowsGoOnFromTheStore) {
  options_.max_tokens = 60;
  store_ = std::make_shared<PrefixStore>(
      PrefixStoreOptions{.max_bytes = std::size_t{1} << 21});
  std::vector<std::string> texts;
  for (int i = 0; i < 4; ++i) texts.push_back(std::string(220, 'a' + i));
  auto stats = answer(
      texts,
      {.memory_budget_bytes = least_budget(model_, request(texts[0])) * 4 / 3});
  EXPECT_GT(stats.preemptions, 0u);
  // All but the token that was drawn then, and wasn't read.
  EXPECT_EQ(stats.prompt_tokens, 4 * 220u + stats.preemptions);
}

TEST_F(SharedPrefixes, TenantsAndFailuresShareNothing) {
  BatchGenerator batch(model_, nullptr);
  auto row = request(kSystem);
  batch.insert(row);
  row.options.prefix_tenant = "other";
  row.options.sampler = [](const mx::array&) -> mx::array {
    throw std::runtime_error("no idea");
  };
  batch.insert(row);
  while (!batch.empty()) batch.next();
  EXPECT_EQ(batch.stats().reused_tokens, 0u);
  EXPECT_EQ(store_->find("", bytes_of(kSystem)).reused_tokens, 0);
  row.options.sampler = nullptr;
  batch.insert(row);
  while (!batch.empty()) batch.next();
  EXPECT_EQ(batch.stats().reused_tokens, 0u);
}

// What a row has read before it is removed or cancelled stays.
TEST_F(SharedPrefixes, RemovedAndCancelledRows) {
  BatchGenerator batch(model_, nullptr, {.prefill_step_tokens = 30});
  auto cancelled = request(kSystem);
  cancelled.options.cancel = {};
  batch.insert(cancelled);
  batch.next();
  cancelled.options.cancel.cancel();
  EXPECT_EQ(batch.next().at(0).part.finish_reason, "cancelled");
  auto again = request(kSystem);
  const RowId removed = batch.insert(again);
  batch.next();
  batch.remove(removed);
  EXPECT_EQ(batch.stats().reused_tokens, 30u);
  batch.insert(again);
  EXPECT_EQ(batch.next_generated().at(0).part.reused_tokens, 60);
}

}  // namespace
}  // namespace mlxlm
