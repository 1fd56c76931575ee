// The speculative decodings that the oracle recorded: MLXLM_PARITY_PIECES names
// the folder that `oracle.py pieces` made.
#include <cstdlib>
#include <fstream>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr double kTie = 1e-4;

std::vector<LogitsProcessor> processors_of(const json& options) {
  PenaltyOptions penalties;
  for (const auto& [name, value] : options.items()) {
    if (name == "repetition_penalty") {
      penalties.repetition_penalty = value;
    } else if (name == "frequency_penalty") {
      penalties.frequency_penalty = value;
    } else if (name == "frequency_context_size") {
      penalties.frequency_context_size = value;
    } else {
      ADD_FAILURE() << "unknown processor " << name;
    }
  }
  return make_logits_processors(penalties);
}

// Equal up to the first step at which two tokens were as good as tied.
void expect_same(const std::vector<int>& actual,
                 const std::vector<int>& expected,
                 const json& margins) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (actual[i] != expected[i]) {
      EXPECT_TRUE(margins.size() > i && margins[i] < kTie)
          << "step " << i << ": " << actual[i] << ", not " << expected[i];
      return;
    }
  }
}

class SpeculativeParity : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("MLXLM_PARITY_PIECES");
    if (folder == nullptr) {
      GTEST_SKIP() << "MLXLM_PARITY_PIECES names no folder";
    }
    folder_ = folder;
    std::ifstream in(folder_ + "/speculative.json");
    pieces_ = json::parse(in);
    target_ = model("target");
  }

  ModelPtr model(const std::string& name) {
    return load_model(folder_ + "/speculative/" + name);
  }

  std::string folder_;
  json pieces_;
  ModelPtr target_;
};

TEST_F(SpeculativeParity, PlainGreedy) {
  std::vector<int> prompt = pieces_["prompt"];
  for (const auto& [options, expected] : pieces_["greedy_processed"].items()) {
    GenerateOptions generation{.max_tokens = 32};
    generation.logits_processors = processors_of(json::parse(options));
    std::vector<int> tokens;
    auto generator = generate_step(prompt, target_, generation);
    while (auto step = generator->next()) {
      tokens.push_back(step->token);
    }
    EXPECT_EQ(json(tokens), expected) << options;
  }
}

TEST_F(SpeculativeParity, TokensAndTheirOrigin) {
  std::vector<int> prompt = pieces_["prompt"];
  for (const json& expected : pieces_["cases"]) {
    json described = expected;
    for (const char* results : {"tokens", "from_draft", "margin"}) {
      described.erase(results);
    }
    SCOPED_TRACE(described.dump());
    GenerateOptions options{.max_tokens = expected["max_tokens"]};
    options.num_draft_tokens = expected["num_draft_tokens"];
    options.logits_processors = processors_of(expected["processors"]);
    std::vector<int> tokens;
    std::vector<int> from_draft;
    auto generator = speculative_generate_step(
        prompt, target_, model(expected["draft"]), options);
    while (auto step = generator->next()) {
      tokens.push_back(step->token);
      from_draft.push_back(step->from_draft ? 1 : 0);
    }
    if (expected["processors"].empty()) {
      expect_same(tokens, expected["tokens"], expected["margin"]);
      EXPECT_EQ(from_draft, expected["from_draft"].get<std::vector<int>>());
    } else {
      // The reference leaves the prompt out of the processors' history; here
      // the tokens are those of plain decoding.
      std::string key = expected["processors"].dump();
      for (const auto& [name, greedy] : pieces_["greedy_processed"].items()) {
        if (json::parse(name) == expected["processors"]) {
          expect_same(tokens, greedy, json::array());
          key.clear();
        }
      }
      EXPECT_EQ(key, "") << "no plain decoding to compare with";
    }
  }
}

}  // namespace
}  // namespace mlxlm
