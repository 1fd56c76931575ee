#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class CliBenchmark : public CliTest {
 protected:
  void SetUp() override { write_model(); }
};
using CliInfo = CliBenchmark;

TEST_F(CliBenchmark, JsonHasMediansSpreadAndTrials) {
  json result = json_of(run({"benchmark",
                             "--model",
                             model(),
                             "-p",
                             "8",
                             "-g",
                             "4",
                             "-n",
                             "3",
                             "--json"}));
  for (const char* key : {"prompt_tps",
                          "generation_tps",
                          "time_to_first_token",
                          "load_time",
                          "peak_memory"}) {
    EXPECT_TRUE(result.at(key).is_number()) << key;
  }
  ASSERT_EQ(result.at("trials").size(), 3u);
  for (const char* key : {"prompt_tps", "generation_tps"}) {
    const json& spread = result.at("spread").at(key);
    EXPECT_EQ(spread.at("median"), result.at(key));
    EXPECT_LE(spread.at("min"), spread.at("median"));
    EXPECT_LE(spread.at("median"), spread.at("max"));
  }
  EXPECT_EQ(result.at("prompt_tokens"), 8);
  EXPECT_EQ(result.at("generation_tokens"), 4);
}

TEST_F(CliBenchmark, TextIsTheReferencesWithMedians) {
  ProcessResult result =
      run({"benchmark", "--model", model(), "-p", "8", "-g", "4", "-n", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(
      result.output,
      AllOf(HasSubstr("Running warmup..\n"
                      "Timing with prompt_tokens=8, generation_tokens=4, "
                      "batch_size=1.\n"),
            ContainsRegex("Trial 2:  prompt_tps=[0-9.]+, "
                          "generation_tps=[0-9.]+, peak_memory=[0-9.]+, "
                          "total_time=[0-9.]+\n"),
            ContainsRegex("Medians.*\nprompt_tps +[0-9.]+ tokens/s")));
}

TEST_F(CliBenchmark, BatchesAndArrivals) {
  json result = json_of(run({"benchmark",
                             "--model",
                             model(),
                             "-p",
                             "8",
                             "-g",
                             "4",
                             "-n",
                             "1",
                             "-b",
                             "3",
                             "--requests",
                             "5",
                             "--arrival-rate",
                             "1000",
                             "--json"}));
  EXPECT_EQ(result.at("batch_size"), 3);
  const json& trial = result.at("trials").at(0);
  EXPECT_GT(trial.at("generation_tps"), 0);
  EXPECT_GE(trial.at("first_token_p99"), trial.at("time_to_first_token"));
  EXPECT_GE(trial.at("token_gap_p99"), trial.at("token_gap_p50"));
}

TEST_F(CliBenchmark, NeedsNoTokenizer) {
  write_model({.tokenizer = false});
  EXPECT_EQ(run({"benchmark",
                 "--model",
                 model(),
                 "-p",
                 "4",
                 "-g",
                 "2",
                 "-n",
                 "1",
                 "--json"})
                .exit_code,
            0);
}

TEST_F(CliInfo, JsonDescribesTheModel) {
  json result = json_of(run({"info", model(), "--context", "128", "--json"}));
  EXPECT_EQ(result.at("model_type"), "llama");
  EXPECT_EQ(result.at("layers"), 2);
  EXPECT_EQ(result.at("vocabulary_size"), 260);
  EXPECT_EQ(result.at("context_tokens"), 512);
  // Embedding, two layers of 4096 + 2 * 2048 + 4096 (attention), 3 * 8192
  // (MLP) and two norms, and the last norm.
  std::int64_t parameters =
      260 * 64 + 2 * (4096 + 2 * 2048 + 4096 + 3 * 8192 + 2 * 64) + 64;
  EXPECT_EQ(result.at("parameters"), parameters);
  EXPECT_EQ(result.at("bytes"), parameters * 4);
  EXPECT_EQ(result.at("parts").at("mlp").at("parameters"), 2 * 3 * 8192);
  EXPECT_EQ(result.at("parts").at("attention").at("formats").at("float32"),
            2 * 12288);
  EXPECT_EQ(result.at("caches"), json({{"KVCache", 2}}));
  EXPECT_EQ(result.at("eos_token_ids"), json({258}));
  const json& memory = result.at("memory");
  EXPECT_EQ(memory.at("context_tokens"), 128);
  // Two layers, keys and values, two heads of 16 floats; room is allocated in
  // steps of 256 tokens.
  EXPECT_GE(memory.at("cache_bytes"), 2 * 2 * 2 * 16 * 4 * 128);
  EXPECT_LE(memory.at("cache_bytes"), 2 * 2 * 2 * 16 * 4 * 256);
  EXPECT_EQ(memory.at("total_bytes"),
            memory.at("weight_bytes").get<std::int64_t>() +
                memory.at("cache_bytes").get<std::int64_t>());
  EXPECT_EQ(result.at("tokenizer").at("chat_template"), true);
}

TEST_F(CliInfo, QuantizationPerPart) {
  write_model({.quantize_bits = 4, .group_size = 32});
  json result = json_of(run({"info", model(), "--json"}));
  EXPECT_EQ(result.at("parts").at("mlp").at("formats"),
            json({{"4-bit affine, group 32", 2 * 3 * 8192}}));
  EXPECT_EQ(result.at("parts").at("mlp").at("parameters"), 2 * 3 * 8192);
}

TEST_F(CliInfo, TextNamesEverything) {
  ProcessResult result = run({"info", "--model", model()});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  for (const char* word : {"Architecture:",
                           "llama",
                           "Parameters:",
                           "Weights:",
                           "attention",
                           "float32",
                           "Caches:",
                           "2 x KVCache",
                           "Chat template:",
                           "Memory:",
                           "512 tokens"}) {
    EXPECT_THAT(result.output, HasSubstr(word));
  }
}

TEST_F(CliInfo, ContextOutOfRange) {
  EXPECT_THAT(run({"info", model(), "--context", "0"}),
              FailsWith(HasSubstr("--context must be at least 1")));
}

}  // namespace
}  // namespace mlxlm
