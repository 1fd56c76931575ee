#include <filesystem>
#include <string>
#include <vector>

#include <mlxlm/generate.h>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class CliGenerate : public CliTest {
 protected:
  void SetUp() override { write_model(); }

  // Greedy text of the prompt "abc" as it stands.
  std::string plain_text(const std::vector<std::string>& more) {
    std::vector<std::string> words = {"-p",
                                      "abc",
                                      "--ignore-chat-template",
                                      "--ignore-eos",
                                      "-m",
                                      "12",
                                      "--verbose",
                                      "F"};
    words.insert(words.end(), more.begin(), more.end());
    ProcessResult result = generate(words);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return result.output;
  }
};

TEST_F(CliGenerate, PrintsTheReferencesFrameAndStatistics) {
  ProcessResult result = generate({"-p", "hi", "-m", "8", "--ignore-eos"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output, StartsWith("==========\n"));
  EXPECT_THAT(result.output,
              ContainsRegex("\n==========\n"
                            "Prompt: [0-9]+ tokens, [0-9.]+ tokens-per-sec\n"
                            "Generation: 8 tokens, [0-9.]+ tokens-per-sec\n"
                            "Peak memory: [0-9.]+ GB\n$"));
}

TEST_F(CliGenerate, VerboseFalsePrintsTheTextOnly) {
  std::string text = plain_text({});
  EXPECT_THAT(text, AllOf(EndsWith("\n"), Not(HasSubstr("=========="))));
  EXPECT_EQ(plain_text({"--no-stream"}), text);
  EXPECT_EQ(plain_text({"--verbose", "False"}), text);
}

TEST_F(CliGenerate, JsonIsOneObject) {
  json result =
      json_of(generate({"-p", "hi", "-m", "5", "--ignore-eos", "--json"}));
  EXPECT_TRUE(result.at("text").is_string());
  EXPECT_EQ(result.at("tokens").size(), 5u);
  EXPECT_EQ(result.at("finish_reason"), "length");
  EXPECT_FALSE(result.contains("logprobs"));
  EXPECT_EQ(result.at("stats").at("generation_tokens"), 5);
  EXPECT_GT(result.at("stats").at("prompt_tokens"), 2);
  for (const char* key : {"prompt_tps", "generation_tps", "peak_memory"}) {
    EXPECT_TRUE(result.at("stats").at(key).is_number()) << key;
  }
}

TEST_F(CliGenerate, JsonWithLogprobs) {
  json result = json_of(generate({"--tokens",
                                  "1,2,3",
                                  "-m",
                                  "4",
                                  "--ignore-eos",
                                  "--json",
                                  "--top-logprobs",
                                  "3"}));
  ASSERT_EQ(result.at("logprobs").size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    const json& entry = result.at("logprobs")[i];
    EXPECT_EQ(entry.at("token"), result.at("tokens")[i]);
    ASSERT_EQ(entry.at("top").size(), 3u);
    // Greedy: the token is the best.
    EXPECT_EQ(entry.at("top")[0].at("token"), entry.at("token"));
    EXPECT_EQ(entry.at("top")[0].at("logprob"), entry.at("logprob"));
    EXPECT_GE(entry.at("top")[0].at("logprob"),
              entry.at("top")[1].at("logprob"));
    EXPECT_LT(entry.at("logprob"), 0.0);
  }
}

TEST_F(CliGenerate, MoreTopLogprobsThanTokensGivesAll) {
  json result = json_of(generate({"--tokens",
                                  "1",
                                  "-m",
                                  "1",
                                  "--ignore-eos",
                                  "--json",
                                  "--top-logprobs",
                                  "1000000"}));
  EXPECT_EQ(result.at("logprobs")[0].at("top").size(), 260u);
}

TEST_F(CliGenerate, TokensEqualTheSameText) {
  json by_text = json_of(generate({"-p",
                                   "abc",
                                   "--ignore-chat-template",
                                   "--ignore-eos",
                                   "-m",
                                   "6",
                                   "--json"}));
  json by_tokens = json_of(
      generate({"--tokens", "97,98,99", "--ignore-eos", "-m", "6", "--json"}));
  EXPECT_EQ(by_text.at("tokens"), by_tokens.at("tokens"));
  EXPECT_EQ(by_text.at("text"), by_tokens.at("text"));
}

TEST_F(CliGenerate, TokensNeedNoTokenizer) {
  json with = json_of(
      generate({"--tokens", "97,98,99", "--ignore-eos", "-m", "6", "--json"}));
  write_model({.tokenizer = false});
  ProcessResult result =
      generate({"--tokens", "97,98,99", "--ignore-eos", "-m", "6", "--json"});
  json without = json_of(result);
  EXPECT_EQ(without.at("tokens"), with.at("tokens"));
  EXPECT_EQ(without.at("text"), "");
  EXPECT_THAT(result.errors, HasSubstr("no usable tokenizer"));
}

TEST_F(CliGenerate, PromptFromStandardInput) {
  ProcessResult piped = generate({"-p",
                                  "-",
                                  "--ignore-chat-template",
                                  "--ignore-eos",
                                  "-m",
                                  "6",
                                  "--json"},
                                 "ab\r\nc");
  json direct = json_of(generate({"-p",
                                  "ab\\nc",
                                  "--ignore-chat-template",
                                  "--ignore-eos",
                                  "-m",
                                  "6",
                                  "--json"}));
  EXPECT_EQ(json_of(piped).at("tokens"), direct.at("tokens"));
}

TEST_F(CliGenerate, PromptMayHoldAnything) {
  for (const char* prompt : {"\xF0\x9F\x98\x80 \xC3\xA9",
                             "\xFF\xFE broken",
                             "--help",
                             "{}",
                             "[a,b]",
                             "-",
                             "%%"}) {
    ProcessResult result = generate(
        {"--prompt", prompt, "-m", "2", "--ignore-eos", "--json"}, "input");
    json value = json_of(result);
    EXPECT_EQ(value["tokens"].size(), 2u) << prompt;
  }
}

TEST_F(CliGenerate, TheChatTemplateIsApplied) {
  auto prompt_tokens = [this](const std::vector<std::string>& more) {
    std::vector<std::string> words = {
        "-p", "hi", "-m", "1", "--ignore-eos", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return json_of(generate(words))["stats"]["prompt_tokens"].get<int>();
  };
  // A token is a byte or a marker: "<|im_start|>user\nhi<|im_end|>\n" and
  // "<|im_start|>assistant\n".
  EXPECT_EQ(prompt_tokens({}), 1 + 5 + 2 + 1 + 1 + 1 + 10);
  EXPECT_EQ(prompt_tokens({"--ignore-chat-template"}), 2);
  EXPECT_EQ(prompt_tokens({"--system-prompt", "be"}), 21 + 1 + 7 + 2 + 1 + 1);
  EXPECT_EQ(prompt_tokens({"--prefill-response", "ok"}), 21 + 2);
  EXPECT_EQ(prompt_tokens({"--chat-template-config", "{\"x\": 1}"}), 21);
}

TEST_F(CliGenerate, WithoutATemplateItsOptionsWarn) {
  json config = tiny_tokenizer_config();
  config.erase("chat_template");
  write_text(folder_ / "model" / "tokenizer_config.json", config.dump());
  ProcessResult result = generate(
      {"-p", "hi", "-m", "1", "--ignore-eos", "--system-prompt", "be"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.errors, HasSubstr("--system-prompt has no effect"));
}

TEST_F(CliGenerate, OptionsWithoutMeaningSaySo) {
  ProcessResult result = generate({"-p",
                                   "hi",
                                   "-m",
                                   "1",
                                   "--ignore-eos",
                                   "--trust-remote-code",
                                   "--use-default-chat-template"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.errors,
              AllOf(HasSubstr("--trust-remote-code has no effect"),
                    HasSubstr("--use-default-chat-template has no effect")));
}

TEST_F(CliGenerate, TheSameSeedGivesTheSameText) {
  std::vector<std::string> seeded = {"--temp", "1", "--seed", "7"};
  std::string first = plain_text(seeded);
  EXPECT_EQ(plain_text(seeded), first);
  EXPECT_NE(plain_text({"--temp", "1", "--seed", "8"}), first);
}

TEST_F(CliGenerate, XtcWithoutCandidatesStillGenerates) {
  EXPECT_EQ(plain_text({"--temp",
                        "1",
                        "--seed",
                        "7",
                        "--xtc-probability",
                        "1",
                        "--xtc-threshold",
                        "0.5"})
                .empty(),
            false);
}

TEST_F(CliGenerate, ABiasForcesATokenAndEosEndsTheText) {
  json forced = json_of(generate(
      {"--tokens", "1,2", "-m", "3", "--json", "--logit-bias", "65:1000"}));
  EXPECT_EQ(forced.at("text"), "AAA");
  json ended = json_of(generate(
      {"--tokens", "1,2", "-m", "3", "--json", "--logit-bias", "258:1000"}));
  EXPECT_EQ(ended.at("text"), "");
  EXPECT_EQ(ended.at("finish_reason"), "stop");
  EXPECT_EQ(ended.at("tokens").size(), 0u);
  json further = json_of(generate({"--tokens",
                                   "1,2",
                                   "-m",
                                   "3",
                                   "--json",
                                   "--logit-bias",
                                   "65:1000",
                                   "--extra-eos-token",
                                   "B",
                                   "A"}));
  EXPECT_EQ(further.at("finish_reason"), "stop");
}

TEST_F(CliGenerate, NoTextSaysSo) {
  ProcessResult result =
      generate({"--tokens", "1,2", "-m", "3", "--logit-bias", "258:1000"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.output, HasSubstr("No text generated for this prompt\n"));
}

TEST_F(CliGenerate, StopTextsEndBeforeThemselves) {
  json result = json_of(generate({"--tokens",
                                  "1,2",
                                  "-m",
                                  "50",
                                  "--json",
                                  "--logit-bias",
                                  "65:1000",
                                  "--stop",
                                  "[x]",
                                  "--stop",
                                  "AAAA"}));
  EXPECT_EQ(result.at("text"), "");
  EXPECT_EQ(result.at("finish_reason"), "stop");
  EXPECT_EQ(result.at("stats").at("generation_tokens"), 4);
}

TEST_F(CliGenerate, PenaltiesChangeTheText) {
  std::string plain = plain_text({"--logit-bias", "65:8"});
  EXPECT_NE(plain_text({"--logit-bias", "65:8", "--frequency-penalty", "50"}),
            plain);
}

TEST_F(CliGenerate, CacheOptionsRun) {
  EXPECT_EQ(plain_text({"--max-kv-size", "8"}).empty(), false);
  EXPECT_EQ(plain_text({"--prefill-step-size", "1"}), plain_text({}));
  write_model({.hidden_size = 128, .num_heads = 2, .num_kv_heads = 1});
  EXPECT_EQ(plain_text({"--kv-bits",
                        "8",
                        "--kv-group-size",
                        "32",
                        "--quantized-kv-start",
                        "0"})
                .empty(),
            false);
}

TEST_F(CliGenerate, ADraftModelGivesTheSameText) {
  EXPECT_EQ(plain_text({"--draft-model", model(), "--num-draft-tokens", "2"}),
            plain_text({}));
}

TEST_F(CliGenerate, DraftsOfNgramsGiveTheSameText) {
  EXPECT_EQ(plain_text({"--draft", "ngram", "--num-draft-tokens", "4"}),
            plain_text({}));
  EXPECT_EQ(plain_text({"--draft", "ngram", "--temp", "0.8", "--seed", "3"}),
            plain_text({"--temp", "0.8", "--seed", "3"}));
}

TEST_F(CliGenerate, DraftsOfItsOwnHeadGiveTheSameText) {
  EXPECT_THAT(generate({"-p", "a", "--draft", "mtp"}),
              FailsWith(HasSubstr("model type \"llama\" has no draft head")));
  write_model_with_head();
  const std::vector<std::string> words{"--draft", "mtp"};
  EXPECT_EQ(plain_text(words), plain_text({}));
  auto all = json_of(generate({"-p",
                               "abc",
                               "-m",
                               "9",
                               "--ignore-eos",
                               "--draft",
                               "mtp",
                               "--num-draft-tokens",
                               "2",
                               "--json"}));
  EXPECT_EQ(all["stats"]["speculation"]["draft"], "mtp");
  EXPECT_GT(all["stats"]["speculation"]["drafted_tokens"], 0);
}

TEST_F(CliGenerate, DraftsGoOnFromASavedCache) {
  const auto file = path("cache.safetensors");
  auto made = run({"cache-prompt",
                   "--model",
                   model(),
                   "--prompt",
                   "The cat",
                   "--prompt-cache-file",
                   file});
  EXPECT_EQ(made.exit_code, 0) << made.errors;
  const std::vector<std::string> words{"--prompt-cache-file", file};
  const auto plain = plain_text(words);
  EXPECT_NE(plain, plain_text({}));
  EXPECT_EQ(plain_text({"--prompt-cache-file",
                        file,
                        "--draft-model",
                        model(),
                        "--num-draft-tokens",
                        "2"}),
            plain);
}

TEST_F(CliGenerate, SaysWhatSpeculationDid) {
  std::vector<std::string> words = {"-p", "abc", "-m", "9", "--ignore-eos"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), words.begin(), words.end());
    return generate(more);
  };
  json all = json_of(
      with({"--draft-model", model(), "--num-draft-tokens", "2", "--json"}));
  json stats = all["stats"]["speculation"];
  EXPECT_EQ(stats["draft"], "model");
  EXPECT_EQ(stats["rounds"], 3);
  EXPECT_EQ(stats["drafted_tokens"], 6);
  EXPECT_EQ(stats["accepted_tokens"], 6);
  EXPECT_EQ(stats["accepted_at"], json({3, 3}));
  EXPECT_TRUE(stats["speedup"].is_null());  // no plain step was timed
  EXPECT_THAT(with({"--draft", "ngram"}).output, HasSubstr("Speculation: "));
  EXPECT_THAT(with({}).output, Not(HasSubstr("Speculation")));
}

TEST_F(CliGenerate, DraftOptionsThatDontFit) {
  EXPECT_THAT(generate({"-p", "a", "--draft", "magic"}),
              FailsWith(HasSubstr("--draft is ngram, mtp or model"), 2));
  EXPECT_THAT(generate({"-p", "a", "--draft", "model"}),
              FailsWith(HasSubstr("needs a --draft-model"), 2));
  EXPECT_THAT(
      generate({"-p", "a", "--draft", "ngram", "--draft-model", model()}),
      FailsWith(HasSubstr("no use for a --draft-model"), 2));
  EXPECT_THAT(
      generate({"-p", "a", "--draft", "ngram", "--num-draft-tokens", "0"}),
      FailsWith(HasSubstr("--num-draft-tokens is 0")));
}

TEST_F(CliGenerate, ADraftModelNeedsTheSameTokens) {
  std::filesystem::create_directory(folder_ / "draft");
  write_tiny_model(folder_ / "draft", {});
  auto tokenizer = tiny_tokenizer();
  auto& vocabulary = tokenizer["model"]["vocab"];
  std::swap(vocabulary["A"], vocabulary["B"]);
  write_text(folder_ / "draft" / "tokenizer.json", tokenizer.dump());
  EXPECT_THAT(generate({"-p", "a", "--draft-model", path("draft")}),
              FailsWith(HasSubstr("2 of 260 tokens, the first is ")));
}

TEST_F(CliGenerate, ADraftModelNeedsTheSameVocabulary) {
  std::filesystem::create_directory(folder_ / "draft");
  write_tiny_model(folder_ / "draft",
                   {.vocabulary_size = 300, .tokenizer = false});
  EXPECT_THAT(generate({"--tokens", "1,2", "--draft-model", path("draft")}),
              FailsWith(HasSubstr("draft")));
}

TEST_F(CliGenerate, APromptCacheIsContinued) {
  // "<|im_start|>user\n" and the text so far, as cache_prompt would make it.
  auto [loaded_model, tokenizer] = load(model());
  PromptCache cache = loaded_model->make_cache();
  std::vector<int> head = tokenizer->encode("<|im_start|>user\n", false);
  mx::array tokens(head.begin(), {1, static_cast<int>(head.size())}, mx::int32);
  loaded_model->forward(tokens, cache);
  save_prompt_cache(path("cache.safetensors"),
                    cache,
                    {{"model", model()}, {"tokenizer_config", "{}"}});

  std::vector<std::string> words = {
      "-p", "hi", "-m", "6", "--ignore-eos", "--json"};
  json plain = json_of(generate(words));
  words.insert(words.end(), {"--prompt-cache-file", path("cache.safetensors")});
  json continued = json_of(generate(words));
  EXPECT_EQ(continued.at("tokens"), plain.at("tokens"));
  EXPECT_EQ(continued["stats"]["prompt_tokens"].get<int>() +
                static_cast<int>(head.size()),
            plain["stats"]["prompt_tokens"].get<int>());

  // The model's name comes from the file; another one is refused.
  json unnamed = json_of(run({"generate",
                              "-p",
                              "hi",
                              "-m",
                              "6",
                              "--ignore-eos",
                              "--json",
                              "--prompt-cache-file",
                              path("cache.safetensors")}));
  EXPECT_EQ(unnamed.at("tokens"), plain.at("tokens"));
  EXPECT_THAT(run({"generate",
                   "--model",
                   "other",
                   "--prompt-cache-file",
                   path("cache.safetensors")}),
              FailsWith(HasSubstr("was made with")));
}

TEST_F(CliGenerate, TheDeadlineEndsGeneration) {
  json result = json_of(generate({"--tokens",
                                  "1,2",
                                  "-m",
                                  "-1",
                                  "--json",
                                  "--ignore-eos",
                                  "--max-kv-size",
                                  "16",
                                  "--deadline",
                                  "0.05"}));
  EXPECT_EQ(result.at("finish_reason"), "deadline");
}

}  // namespace
}  // namespace mlxlm
