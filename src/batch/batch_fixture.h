// Rows of a batch against the same requests alone.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <mlxlm/batch.h>

#include "batch/admission.h"
#include "generate/toy.h"

namespace mlxlm {

struct Ended {
  std::vector<int> tokens;
  std::string text;
  std::string reason;
  std::string error;
};

inline std::map<RowId, Ended> run(BatchGenerator& batch) {
  std::map<RowId, Ended> rows;
  while (!batch.empty()) {
    for (const auto& [row, part, error] : batch.next()) {
      EXPECT_EQ(rows[row].reason, "") << "row " << row << " had ended";
      if (part.token >= 0) rows[row].tokens.push_back(part.token);
      rows[row].text += part.text;
      rows[row].reason = part.finish_reason;
      rows[row].error = error;
    }
  }
  return rows;
}

// The least budgets with which a request is taken over, and with which all of
// these start together.
inline std::uint64_t least_budget(const ModelPtr& model,
                                  const BatchRequest& request) {
  Admission admission(model, {.memory_budget_bytes = std::uint64_t{1} << 60});
  const ToyTokenizer tokenizer;
  Row row(0, request, {}, model, &tokenizer);
  admission.check(row, {});
  return admission.bytes({}, 0) + row.alone_bytes;
}

inline std::uint64_t tight_budget(const ModelPtr& model,
                                  const std::vector<BatchRequest>& requests) {
  Admission admission(model, {.memory_budget_bytes = std::uint64_t{1} << 60});
  const ToyTokenizer tokenizer;
  std::vector<std::unique_ptr<Row>> rows;
  std::vector<const Row*> pointers;
  for (const auto& request : requests) {
    rows.push_back(std::make_unique<Row>(
        rows.size(), request, std::vector<SegmentEnd>{}, model, &tokenizer));
    admission.check(*rows.back(), {});
    Admission::reserve_start(*rows.back());
    pointers.push_back(rows.back().get());
  }
  return admission.bytes(pointers, Admission::kLeastPromptTokens);
}

class BatchTest : public ::testing::Test {
 protected:
  Ended alone(const BatchRequest& request) const {
    Ended answer;
    auto stream =
        stream_generate(model_, tokenizer_, request.prompt, request.options);
    while (auto part = stream.next()) {
      if (part->token >= 0) answer.tokens.push_back(part->token);
      answer.text += part->text;
      answer.reason = part->finish_reason;
    }
    return answer;
  }

  void expect_alone(const BatchRequest& request, const Ended& row) const {
    Ended expected = alone(request);
    EXPECT_EQ(row.tokens, expected.tokens);
    EXPECT_EQ(row.text, expected.text);
    EXPECT_EQ(row.reason, expected.reason);
    EXPECT_EQ(row.error, "");
  }

  std::shared_ptr<ToyModel> model_ = std::make_shared<ToyModel>();
  TokenizerPtr tokenizer_ = std::make_shared<ToyTokenizer>();
};

inline BatchRequest request(const std::string& text,
                            GenerateOptions options = {}) {
  return {.prompt = bytes_of(text), .options = std::move(options)};
}

}  // namespace mlxlm
