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

}  // namespace

void check_batch(const ModelPtr& model, const std::vector<int>& tokens) {
  const GenerateOptions options{.max_tokens = 6, .ignore_eos = true};
  // The longest prompt takes several passes, in which the others decode.
  BatchGenerator batch(model, nullptr, {.interleaved_tokens = 6});
  std::vector<Answer> expected;
  for (int length : {5, 1, 17}) {
    const std::vector<int> prompt(tokens.end() - length, tokens.end());
    expected.push_back(alone(model, prompt, options));
    batch.insert({.prompt = prompt, .options = options});
  }
  std::map<RowId, Answer> rows;
  while (!batch.empty()) {
    for (const auto& [row, part, error] : batch.next()) {
      ASSERT_EQ(error, "");
      rows[row].tokens.push_back(part.token);
      rows[row].logprobs.push_back(*part.logprobs);
    }
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE("row " + std::to_string(i));
    expect_same(rows[i], expected[i]);
  }
}

}  // namespace mlxlm::parity
