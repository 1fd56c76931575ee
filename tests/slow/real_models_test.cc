// The two default models against what the reference decoded in float32: the
// prompt's text and tokens, and 200 greedy ones.
#include <filesystem>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "core/file.h"
#include "load/resolve.h"
#include "tests/support/test_data.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// Where the two best tokens were closer than this, either may be drawn.
constexpr double kTie = 1e-4;

struct RealModel {
  const char* name;
  const char* file;
  const char* reference;  // of tests/data
};

class RealModels : public ::testing::TestWithParam<RealModel> {
 protected:
  void SetUp() override {
    auto file = default_models_folder() / GetParam().file;
    if (!std::filesystem::exists(file)) {
      GTEST_SKIP() << file << " is not there; ./test fetches it";
    }
    reference_ = json::parse(read_file(test_data(GetParam().reference)));
    loaded_ = load(file.string());
  }

  json reference_;
  LoadedModel loaded_;
};

TEST_P(RealModels, EncodesThePromptAsTheReference) {
  auto& tokenizer = *loaded_.tokenizer;
  std::string rendered = reference_["prompt"];
  if (tokenizer.has_chat_template()) {
    json messages = {{{"role", "user"}, {"content", reference_["prompt"]}}};
    rendered = tokenizer.apply_chat_template(messages.dump());
  }
  EXPECT_EQ(rendered, reference_["rendered"].get<std::string>());
  bool special = !rendered.starts_with(tokenizer.bos_token());
  EXPECT_EQ(json(tokenizer.encode(rendered, special)),
            reference_["prompt_tokens"]);
}

TEST_P(RealModels, DecodesAsTheReference) {
  std::vector<int> expected = reference_["tokens"];
  GenerateOptions options{.max_tokens = static_cast<int>(expected.size()),
                          .ignore_eos = true};
  std::vector<int> prompt = reference_["prompt_tokens"];
  std::string text;
  std::size_t count = 0;
  for (const auto& part :
       stream_generate(loaded_.model, loaded_.tokenizer, prompt, options)) {
    text += part.text;
    ASSERT_LT(count, expected.size());
    if (part.token != expected[count]) {
      ASSERT_LT(reference_["margins"][count], kTie)
          << "step " << count << ": " << part.token << ", not "
          << expected[count];
      return;
    }
    ++count;
  }
  EXPECT_EQ(count, expected.size());
  EXPECT_EQ(text, reference_["text"].get<std::string>());
}

INSTANTIATE_TEST_SUITE_P(
    Files,
    RealModels,
    ::testing::Values(RealModel{"SmolLM2",
                                "SmolLM2-135M-Instruct.Q4_1.gguf",
                                "reference_smollm2.json"},
                      RealModel{"Gemma3",
                                "gemma-3-270m-q4_k_m.gguf",
                                "reference_gemma3.json"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mlxlm
