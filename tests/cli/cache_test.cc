// cache-prompt, and generate with what it saved.
#include <mlxlm/cache.h>
#include <mlxlm/generate.h>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kUsage = 2;

class CliCache : public CliTest {
 protected:
  void SetUp() override {
    write_model({.hidden_size = 128, .num_heads = 2, .num_kv_heads = 1});
  }

  // Its first layer sees a window of tokens only.
  void write_windowed_model(int window_tokens) {
    write_model(
        {.hidden_size = 128,
         .num_heads = 2,
         .num_kv_heads = 1,
         .config_changes = {
             {"sliding_window", window_tokens},
             {"layer_types", {"sliding_attention", "full_attention"}}}});
  }

  std::string file() const { return path("cache.safetensors"); }

  ProcessResult cache_prompt(std::vector<std::string> arguments) const {
    std::vector<std::string> words{
        "cache-prompt", "--model", model(), "--prompt-cache-file", file()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run(words);
  }

  // Six tokens after these arguments.
  json six(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"-m", "6", "--ignore-eos", "--json"});
    return json_of(generate(arguments));
  }

  std::vector<std::string> with_file(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"--prompt-cache-file", file()});
    return arguments;
  }

  int prompt_tokens(const json& result) const {
    return result["stats"]["prompt_tokens"];
  }
};

TEST_F(CliCache, GenerateContinuesWhatWasCached) {
  ProcessResult result = cache_prompt({"--tokens", "5,6,7,8"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output,
              AllOf(HasSubstr("Processed 4 tokens\n"),
                    HasSubstr("Peak memory: "),
                    HasSubstr("MB of cache\n")));
  json whole = six({"--tokens", "5,6,7,8,9,10"});
  json rest = six(with_file({"--tokens", "9,10"}));
  EXPECT_EQ(rest.at("tokens"), whole.at("tokens"));
  EXPECT_EQ(prompt_tokens(rest), 2);
  // The file says which model made it.
  json unnamed = json_of(run({"generate",
                              "--tokens",
                              "9,10",
                              "-m",
                              "6",
                              "--ignore-eos",
                              "--temp",
                              "0",
                              "--json",
                              "--prompt-cache-file",
                              file()}));
  EXPECT_EQ(unnamed.at("tokens"), whole.at("tokens"));
}

TEST_F(CliCache, AMessageIsCachedAsTheChatTemplateBeginsIt) {
  ASSERT_EQ(cache_prompt({"--prompt", "Once"}).exit_code, 0);
  auto [cache, metadata] = load_prompt_cache(file());
  auto [loaded, tokenizer] = load(model());
  auto origin = origin_in(metadata);
  ASSERT_TRUE(origin);
  EXPECT_EQ(tokenizer->decode(*origin->tokens), "<|im_start|>user\nOnce");
  EXPECT_EQ(cache[0]->offset(), static_cast<int>(origin->tokens->size()));
  EXPECT_EQ(metadata.at("model"), model());
  EXPECT_EQ(json::parse(metadata.at("tokenizer_config")),
            json({{"trust_remote_code", false}}));
  // Cached message and prompt together are the whole message.
  json whole = six({"-p", "Once more"});
  EXPECT_EQ(six(with_file({"-p", " more"})).at("tokens"), whole.at("tokens"));
}

TEST_F(CliCache, PrefixModeReusesWhatIsCommon) {
  ASSERT_EQ(cache_prompt({"--tokens", "5,6,7,8"}).exit_code, 0);
  auto prefix = [&](const std::string& tokens) {
    auto words = with_file({"generate",
                            "--model",
                            model(),
                            "--temp",
                            "0",
                            "--tokens",
                            tokens,
                            "-m",
                            "6",
                            "--ignore-eos",
                            "--json",
                            "--prompt-cache-mode",
                            "prefix"});
    return run(words);
  };
  struct Case {
    const char* tokens;
    int num_cached;
    int num_read;
  };
  for (const Case& c : {Case{"5,6,7,8,9,10", 4, 2},
                        Case{"5,6,9,10,11", 2, 3},
                        Case{"9,8", 0, 2},
                        Case{"5,6,7,8", 3, 1},
                        Case{"5", 0, 1}}) {
    SCOPED_TRACE(c.tokens);
    ProcessResult result = prefix(c.tokens);
    json answer = json_of(result);
    EXPECT_EQ(answer.at("tokens"), six({"--tokens", c.tokens}).at("tokens"));
    EXPECT_EQ(prompt_tokens(answer), c.num_read);
    EXPECT_THAT(result.errors,
                HasSubstr(std::to_string(c.num_cached) +
                          " are cached; reading from token " +
                          std::to_string(c.num_cached + 1) + " on"));
  }
  EXPECT_THAT(run(with_file({"generate", "--prompt-cache-mode", "suffix"})),
              FailsWith(HasSubstr("continue or prefix"), kUsage));
}

TEST_F(CliCache, PrefixModeSaysWhyNothingIsReused) {
  write_windowed_model(6);
  ASSERT_EQ(cache_prompt({"--tokens", "5,6,7,8,9,10,11,12"}).exit_code, 0);
  ProcessResult result = run(with_file({"generate",
                                        "--model",
                                        model(),
                                        "--temp",
                                        "0",
                                        "--tokens",
                                        "5,6,7,9",
                                        "-m",
                                        "6",
                                        "--ignore-eos",
                                        "--json",
                                        "--prompt-cache-mode",
                                        "prefix"}));
  EXPECT_EQ(json_of(result).at("tokens"),
            six({"--tokens", "5,6,7,9"}).at("tokens"));
  EXPECT_THAT(result.errors,
              AllOf(HasSubstr("0 are cached"),
                    HasSubstr("the first 3 are the same"),
                    HasSubstr("RotatingKVCache")));
}

TEST_F(CliCache, QuantizedCachesAreSavedAndContinued) {
  std::vector<std::string> quantized{"--kv-key-bits",
                                     "8",
                                     "--kv-value-bits",
                                     "4",
                                     "--kv-group-size",
                                     "32",
                                     "--quantized-kv-start",
                                     "0"};
  auto with = [&](std::vector<std::string> words) {
    words.insert(words.end(), quantized.begin(), quantized.end());
    return words;
  };
  for (bool windowed : {false, true}) {
    if (windowed) {
      write_windowed_model(30);
    }
    ASSERT_EQ(cache_prompt(with({"--tokens", "5,6,7,8"})).exit_code, 0);
    auto cache = load_prompt_cache(file()).first;
    EXPECT_EQ(cache[0]->kind(),
              windowed ? "QuantizedRotatingKVCache" : "QuantizedKVCache");
    EXPECT_EQ(cache[1]->kind(), "QuantizedKVCache");
    for (const auto& layer : cache) {
      EXPECT_EQ(layer->capabilities().quantization, (KvQuantization{8, 4, 32}));
    }
    EXPECT_EQ(six(with_file(with({"--tokens", "9,10"})))["tokens"].size(), 6u);
    EXPECT_THAT(
        generate(with_file(
            {"--tokens", "9", "--kv-bits", "8", "--kv-group-size", "32"})),
        FailsWith(HasSubstr("--kv-bits is 8, but the cache in "
                            "--prompt-cache-file has 4")));
  }
}

TEST_F(CliCache, ACacheOfAnotherModelIsRefused) {
  ASSERT_EQ(cache_prompt({"--tokens", "5,6,7,8"}).exit_code, 0);
  write_model(
      {.num_layers = 3, .hidden_size = 128, .num_heads = 2, .num_kv_heads = 1});
  EXPECT_THAT(generate(with_file({"--tokens", "9"})),
              FailsWith(AllOf(HasSubstr("was saved with 2 layers"),
                              HasSubstr("has 3"))));
}

TEST_F(CliCache, BadUseAndFailures) {
  EXPECT_THAT(run({"cache-prompt", "--prompt", "x"}),
              FailsWith(HasSubstr("--prompt-cache-file"), kUsage));
  EXPECT_THAT(run({"cache-prompt", "--prompt-cache-file", file()}),
              FailsWith(HasSubstr("needs --prompt or --tokens"), kUsage));
  EXPECT_THAT(cache_prompt({"--tokens", "1", "--kv-key-bits", "4"}),
              FailsWith(HasSubstr("--kv-key-bits needs --kv-value-bits")));
  EXPECT_THAT(run({"cache-prompt",
                   "--model",
                   model(),
                   "--tokens",
                   "1",
                   "--prompt-cache-file",
                   path("nowhere/c.safetensors")}),
              FailsWith(HasSubstr("nowhere")));
}

}  // namespace
}  // namespace mlxlm
