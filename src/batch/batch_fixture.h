// Rows of a batch against the same requests alone.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <mlxlm/batch.h>

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
