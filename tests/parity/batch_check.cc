#include "tests/parity/batch_check.h"

#include <algorithm>
#include <map>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "tests/support/margin.h"

namespace mlxlm::parity {
namespace {

struct Answer {
  std::vector<int> tokens;
  std::vector<mx::array> logprobs;
};

Answer alone(const ModelPtr& model,
             const std::vector<int>& prompt,
             const GenerateOptions& options) {
  Answer answer;
  auto stream = stream_generate(model, nullptr, prompt, options);
  while (auto part = stream.next()) {
    answer.tokens.push_back(part->token);
    answer.logprobs.push_back(*part->logprobs);
  }
  return answer;
}

void expect_same(const Answer& row, const Answer& expected) {
  ASSERT_EQ(row.tokens.size(), expected.tokens.size());
  for (std::size_t i = 0; i < expected.tokens.size(); ++i) {
    auto error =
        mx::max(mx::abs(mx::subtract(row.logprobs[i], expected.logprobs[i])));
    EXPECT_LT(error.item<float>(), 2e-3f) << "step " << i;
    if (margin_of(expected.logprobs[i]) < 2e-3f) return;  // as good as tied
    ASSERT_EQ(row.tokens[i], expected.tokens[i]) << "step " << i;
  }
}

// The prompts as rows of one batch. Those that are longer than a pass are read
// in several, in which the others decode.
std::vector<Answer> together(const ModelPtr& model,
                             const std::vector<std::vector<int>>& prompts,
                             const GenerateOptions& options) {
  BatchGenerator batch(model, nullptr, {.interleaved_tokens = 6});
  std::vector<RowId> ids;
  for (const auto& prompt : prompts) {
    ids.push_back(batch.insert({.prompt = prompt, .options = options}));
  }
  std::map<RowId, Answer> rows;
  while (!batch.empty()) {
    for (const auto& [row, part, error] : batch.next()) {
      EXPECT_EQ(error, "");
      if (!error.empty()) return std::vector<Answer>(prompts.size());
      rows[row].tokens.push_back(part.token);
      rows[row].logprobs.push_back(*part.logprobs);
    }
  }
  std::vector<Answer> answers;
  for (const auto id : ids) answers.push_back(std::move(rows[id]));
  return answers;
}

}  // namespace

void check_batch(const ModelPtr& model, const std::vector<int>& tokens) {
  const GenerateOptions options{.max_tokens = 6, .ignore_eos = true};
  std::vector<std::vector<int>> prompts;
  for (std::size_t length : {5, 1, 17}) {
    length = std::min(length, tokens.size());
    prompts.emplace_back(tokens.end() - length, tokens.end());
  }
  const auto rows = together(model, prompts, options);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    SCOPED_TRACE("row " + std::to_string(i));
    expect_same(rows[i], alone(model, prompts[i], options));
  }
}

void check_batch(const ModelPtr& model, const Expectation& expected) {
  const auto lengths = expected.ints("batch_lengths");
  const int steps = expected.array("single_greedy").shape(1);
  std::vector<std::vector<int>> prompts;
  for (int row = 0; row < static_cast<int>(lengths.size()); ++row) {
    const auto tokens = expected.ints("batch_tokens", row);
    prompts.emplace_back(tokens.end() - lengths[row], tokens.end());
  }
  const auto rows =
      together(model, prompts, {.max_tokens = steps, .ignore_eos = true});
  for (int row = 0; row < static_cast<int>(rows.size()); ++row) {
    SCOPED_TRACE("row " + std::to_string(row));
    const auto& [tokens, logprobs] = rows[row];
    ASSERT_EQ(static_cast<int>(tokens.size()), steps);
    EXPECT_TRUE(expected.near("single_first_logprobs", logprobs.front(), row));
    EXPECT_TRUE(expected.same_tokens("single", tokens, row));
    if (tokens != expected.ints("single_greedy", row)) continue;  // a tie
    EXPECT_TRUE(expected.near("single_last_logprobs", logprobs.back(), row));
  }
}

}  // namespace mlxlm::parity
