// The two small real models against what the reference decoded in float32.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

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
    const char* folder = std::getenv("MLX_LM_MODELS_DIR");
    if (folder == nullptr) {
      GTEST_SKIP() << "MLX_LM_MODELS_DIR isn't set; ./test fetches the models";
    }
    auto file = std::filesystem::path(folder) / GetParam().file;
    if (!std::filesystem::exists(file)) {
      GTEST_SKIP() << file << " is not there; ./test fetches it";
    }
    std::ifstream in(test_data(GetParam().reference));
    reference_ = json::parse(in);
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
  bool tied = false;
  for (const auto& part :
       stream_generate(loaded_.model, loaded_.tokenizer, prompt, options)) {
    text += part.text;
    if (part.token != expected[count]) {
      EXPECT_LT(reference_["margins"][count], kTie)
          << "step " << count << ": " << part.token << ", not "
          << expected[count];
      tied = true;
      break;
    }
    ++count;
  }
  EXPECT_TRUE(tied || count == expected.size()) << count;
  if (!tied) {
    EXPECT_EQ(text, reference_["text"].get<std::string>());
  }
  EXPECT_NE(text.find("Paris"), std::string::npos) << text;
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
