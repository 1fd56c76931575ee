#include <cmath>
#include <filesystem>

#include <mlx/mlx.h>

#include <mlxlm/model.h>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

namespace mx = mlx::core;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class CliScore : public CliTest {
 protected:
  void SetUp() override { write_model(); }

  ProcessResult score(std::vector<std::string> arguments,
                      const std::string& input = "") const {
    arguments.insert(arguments.begin(), {"score", "--model", model()});
    return run(arguments, input);
  }
};

TEST_F(CliScore, JsonAddsUp) {
  json result = json_of(score({"--text", "hello", "--json"}));
  ASSERT_EQ(result.at("tokens"), json({104, 101, 108, 108, 111}));
  EXPECT_EQ(result.at("texts"), json({"h", "e", "l", "l", "o"}));
  ASSERT_EQ(result.at("logprobs").size(), 5u);
  EXPECT_TRUE(result.at("logprobs")[0].is_null());
  double total = 0;
  for (int i = 1; i < 5; ++i) {
    EXPECT_LT(result.at("logprobs")[i], 0.0);
    total += result.at("logprobs")[i].get<double>();
  }
  EXPECT_NEAR(result.at("total_logprob"), total, 1e-4);
  EXPECT_NEAR(result.at("perplexity"), std::exp(-total / 4), 1e-2);
}

TEST_F(CliScore, TextListsTheTokens) {
  ProcessResult result = score({"--text", "a\nb"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output,
              AllOf(HasSubstr("\"\\n\""),
                    HasSubstr("Tokens: 3\nCache: "),
                    ContainsRegex("Total log-probability: -[0-9.]+\n"
                                  "Perplexity: [0-9.]+\n$")));
}

TEST_F(CliScore, FileStandardInputAndTokensAgree) {
  write_text(folder_ / "text", "hello");
  json by_text = json_of(score({"--text", "hello", "--json"}));
  EXPECT_EQ(json_of(score({"--file", path("text"), "--json"})), by_text);
  EXPECT_EQ(json_of(score({"--file", "-", "--json"}, "hello")), by_text);
  EXPECT_EQ(json_of(score({"--tokens", "104,101,108,108,111", "--json"})),
            by_text);
}

TEST_F(CliScore, AQuantizedCacheIsSmallerAndScoresAlike) {
  write_model({.hidden_size = 128, .num_heads = 2, .num_kv_heads = 1});
  json exact = json_of(score({"--text", "hello there", "--json"}));
  json rounded = json_of(score({"--text",
                                "hello there",
                                "--json",
                                "--kv-bits",
                                "8",
                                "--kv-group-size",
                                "32"}));
  EXPECT_LT(rounded.at("cache_bytes").get<int>() * 3,
            exact.at("cache_bytes").get<int>());
  EXPECT_NEAR(rounded.at("total_logprob"), exact.at("total_logprob"), 0.1);
  EXPECT_NE(rounded.at("total_logprob"), exact.at("total_logprob"));
}

TEST_F(CliScore, UnknownCpuModesAreRefused) {
  for (const char* mode : {"exact", "fast", "fastest"}) {
    EXPECT_EQ(score({"--text", "hello", "--cpu-mode", mode}).exit_code, 0);
  }
  ProcessResult result = score({"--text", "hello", "--cpu-mode", "faster"});
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.errors,
              ::testing::HasSubstr("--cpu-mode is \"faster\"; it can be exact, "
                                   "fast or fastest"));
}

TEST_F(CliScore, OneTokenHasNoPerplexity) {
  json result = json_of(score({"--tokens", "5", "--json"}));
  EXPECT_EQ(result.at("logprobs"), json::array({nullptr}));
  EXPECT_TRUE(result.at("perplexity").is_null());
  EXPECT_EQ(score({"--tokens", "5"}).exit_code, 0);
}

TEST_F(CliScore, LogitsAreThoseOfTheModel) {
  json result = json_of(score({"--tokens",
                               "1,2,3,4,5",
                               "--json",
                               "--logits",
                               path("logits.safetensors")}));
  auto tensors = mx::load_safetensors(path("logits.safetensors")).first;
  ASSERT_EQ(tensors.size(), 1u);
  mx::array logits = tensors.at("logits");
  ASSERT_EQ(logits.dtype(), mx::float32);
  ASSERT_EQ(logits.shape(), (mx::Shape{5, 260}));

  mx::array expected = mx::squeeze(
      load_model(model())->forward(mx::array({1, 2, 3, 4, 5}, {1, 5})), 0);
  EXPECT_TRUE(mx::allclose(logits, expected, 1e-4, 1e-4).item<bool>());

  mx::array logprobs =
      mx::subtract(expected, mx::logsumexp(expected, -1, true));
  EXPECT_NEAR(result.at("logprobs")[2],
              mx::slice(logprobs, {1, 3}, {2, 4}).item<float>(),
              1e-4);
}

TEST_F(CliScore, ChunksDoNotMatter) {
  json whole = json_of(score({"--text",
                              "hello world",
                              "--json",
                              "--logits",
                              path("whole.safetensors")}));
  json chunks = json_of(score({"--text",
                               "hello world",
                               "--json",
                               "--logits",
                               path("chunks.safetensors"),
                               "--prefill-step-size",
                               "3"}));
  EXPECT_NEAR(whole.at("total_logprob"), chunks.at("total_logprob"), 1e-3);
  EXPECT_TRUE(
      mx::allclose(
          mx::load_safetensors(path("whole.safetensors")).first.at("logits"),
          mx::load_safetensors(path("chunks.safetensors")).first.at("logits"),
          1e-4,
          1e-4)
          .item<bool>());
}

TEST_F(CliScore, AFailureLeavesNoFile) {
  EXPECT_NE(
      score({"--tokens", "1,260", "--logits", path("l.safetensors")}).exit_code,
      0);
  EXPECT_FALSE(std::filesystem::exists(path("l.safetensors")));
}

TEST_F(CliScore, MissingFile) {
  EXPECT_THAT(score({"--file", path("nowhere")}),
              FailsWith(HasSubstr("nowhere")));
}

}  // namespace
}  // namespace mlxlm
