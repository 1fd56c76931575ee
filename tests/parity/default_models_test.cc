// The two default models against the reference in float32: the prompt's text
// and tokens, and 200 greedy ones.

#include <filesystem>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "core/file.h"
#include "load/resolve.h"
#include "tests/support/test_data.h"

namespace mlxlm {
namespace {

// Two best logits this close may change places.
constexpr double kTie = 1e-4;

struct Case {
  const char* file;
  const char* golden;
  bool has_chat_template;
};

class DefaultModel : public testing::TestWithParam<Case> {};

TEST_P(DefaultModel, SaysWhatTheReferenceSays) {
  auto path = default_models_folder() / GetParam().file;
  if (!std::filesystem::exists(path)) {
    GTEST_SKIP() << path << " isn't there; ./test fetches it";
  }
  auto golden = nlohmann::json::parse(read_file(test_data(GetParam().golden)));
  std::string prompt = golden.at("prompt");
  std::vector<int> prompt_tokens = golden.at("prompt_tokens");
  std::vector<int> expected = golden.at("tokens");
  std::vector<double> margins = golden.at("margins");

  auto [model, tokenizer] = load(path.string());
  if (GetParam().has_chat_template) {
    nlohmann::json messages = {{{"role", "user"}, {"content", prompt}}};
    prompt = tokenizer->apply_chat_template(messages.dump());
    EXPECT_EQ(prompt, golden.at("rendered").get<std::string>());
    EXPECT_EQ(tokenizer->encode(prompt, false), prompt_tokens);
  } else {
    EXPECT_EQ(tokenizer->encode(prompt), prompt_tokens);
  }

  GenerateOptions options;
  options.max_tokens = static_cast<int>(expected.size());
  auto steps = generate_step(prompt_tokens, model, options);
  std::vector<int> tokens;
  while (auto step = steps->next()) {
    std::size_t at = tokens.size();
    ASSERT_LT(at, expected.size());
    if (step->token != expected[at] && margins[at] < kTie) {
      return;
    }
    ASSERT_EQ(step->token, expected[at])
        << "step " << at << ", margin " << margins[at];
    tokens.push_back(step->token);
  }
  EXPECT_EQ(tokens.size(), expected.size());
  EXPECT_EQ(tokenizer->decode(tokens), golden.at("text").get<std::string>());
}

INSTANTIATE_TEST_SUITE_P(
    ,
    DefaultModel,
    testing::Values(
        Case{"SmolLM2-135M-Instruct.Q4_1.gguf", "reference_smollm2.json", true},
        Case{"gemma-3-270m-q4_k_m.gguf", "reference_gemma3.json", false}),
    [](const auto& info) {
      return std::string(info.index == 0 ? "SmolLm2" : "Gemma3");
    });

}  // namespace
}  // namespace mlxlm
