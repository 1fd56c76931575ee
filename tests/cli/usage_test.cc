// The command line itself: no model is needed.
#include <fstream>
#include <iterator>

#include <nlohmann/json.hpp>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using CliUsage = CliTest;

constexpr int kUsage = 2;

TEST_F(CliUsage, HelpListsTheCommands) {
  ProcessResult result = run({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.errors, "");
  for (const char* word : {"generate",
                           "chat",
                           "cache-prompt",
                           "score",
                           "benchmark",
                           "info",
                           "models",
                           "Examples:",
                           "--version"}) {
    EXPECT_THAT(result.output, HasSubstr(word));
  }
}

TEST_F(CliUsage, HelpOfGenerateListsTheReferencesOptions) {
  ProcessResult result = run({"generate", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* option : {"--model",
                             "--trust-remote-code",
                             "--adapter-path",
                             "--extra-eos-token",
                             "--system-prompt",
                             "--prompt",
                             "-p",
                             "--image",
                             "--prefill-response",
                             "--max-tokens",
                             "-m",
                             "--temp",
                             "--top-p",
                             "--min-p",
                             "--top-k",
                             "--xtc-probability",
                             "--xtc-threshold",
                             "--min-tokens-to-keep",
                             "--seed",
                             "--ignore-chat-template",
                             "--use-default-chat-template",
                             "--chat-template-config",
                             "--verbose",
                             "--max-kv-size",
                             "--prefill-step-size",
                             "--prompt-cache-file",
                             "--prompt-cache-mode",
                             "--quantize-activations",
                             "-qa",
                             "--kv-bits",
                             "--kv-key-bits",
                             "--kv-value-bits",
                             "--kv-group-size",
                             "--quantized-kv-start",
                             "--draft-model",
                             "--num-draft-tokens"}) {
    EXPECT_THAT(result.output, HasSubstr(option));
  }
}

TEST_F(CliUsage, HelpOfCachePromptListsTheReferencesOptions) {
  ProcessResult result = run({"cache-prompt", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* option : {"--model",
                             "--adapter-path",
                             "--trust-remote-code",
                             "--eos-token",
                             "--max-kv-size",
                             "--prompt-cache-file",
                             "--prompt",
                             "--kv-bits",
                             "--kv-group-size",
                             "--quantized-kv-start"}) {
    EXPECT_THAT(result.output, HasSubstr(option));
  }
}

TEST_F(CliUsage, HelpOfChatListsTheReferencesOptions) {
  ProcessResult result = run({"chat", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* option : {"--model",
                             "--trust-remote-code",
                             "--adapter-path",
                             "--temp",
                             "--top-p",
                             "--xtc-probability",
                             "--xtc-threshold",
                             "--seed",
                             "--max-kv-size",
                             "--prefill-step-size",
                             "--max-tokens",
                             "-m",
                             "--system-prompt",
                             "--pipeline"}) {
    EXPECT_THAT(result.output, HasSubstr(option));
  }
}

TEST_F(CliUsage, EveryCommandHasHelp) {
  for (const char* verb :
       {"generate", "chat", "cache-prompt", "score", "benchmark", "info"}) {
    ProcessResult result = run({verb, "-h"});
    EXPECT_EQ(result.exit_code, 0) << verb;
    EXPECT_THAT(result.output, HasSubstr("Examples:")) << verb;
  }
}

TEST_F(CliUsage, VersionNamesBothParts) {
  ProcessResult result = run({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.output, AllOf(StartsWith("mlx-lm "), HasSubstr("MLX ")));
}

TEST_F(CliUsage, NoCommand) {
  EXPECT_THAT(run({}), FailsWith(HasSubstr("a command is missing"), kUsage));
}

TEST_F(CliUsage, UnknownCommand) {
  EXPECT_THAT(run({"genrate", "--prompt", "x"}),
              FailsWith(HasSubstr("did you mean generate?"), kUsage));
}

TEST_F(CliUsage, UnknownOptionNamesTheNearest) {
  EXPECT_THAT(run({"generate", "--tmep", "1"}),
              FailsWith(HasSubstr("unknown option --tmep; did you mean "
                                  "--temp?"),
                        kUsage));
  EXPECT_THAT(run({"generate", "--max-token=5"}),
              FailsWith(HasSubstr("did you mean --max-tokens?"), kUsage));
  EXPECT_THAT(run({"score", "--txt", "x"}),
              FailsWith(HasSubstr("did you mean --text?"), kUsage));
}

TEST_F(CliUsage, TextWithoutAnOption) {
  EXPECT_THAT(run({"generate", "Why?"}),
              FailsWith(AllOf(HasSubstr("unexpected argument \"Why?\""),
                              HasSubstr("--prompt")),
                        kUsage));
}

TEST_F(CliUsage, MissingValue) {
  EXPECT_THAT(run({"generate", "--temp"}),
              FailsWith(HasSubstr("--temp needs a value"), kUsage));
}

TEST_F(CliUsage, NotANumber) {
  EXPECT_THAT(
      run({"generate", "--temp", "warm"}),
      FailsWith(HasSubstr("--temp can't be \"warm\": it takes a number"),
                kUsage));
  EXPECT_THAT(run({"generate", "--max-tokens", "99999999999"}),
              FailsWith(HasSubstr("--max-tokens"), kUsage));
  EXPECT_THAT(run({"generate", "--seed", "-1"}),
              FailsWith(HasSubstr("--seed"), kUsage));
}

TEST_F(CliUsage, SamplingOutOfRangeIsToldBeforeAnyModelIsLoaded) {
  EXPECT_THAT(run({"generate", "--model", "/none", "--temp", "-1"}),
              FailsWith(HasSubstr("--temp must be a finite number of at least "
                                  "0, but is -1")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--top-p", "2"}),
              FailsWith(HasSubstr("--top-p must be in [0, 1], but is 2")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--temp", "nan"}),
              FailsWith(HasSubstr("--temp must be")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--min-p", "-0.5"}),
              FailsWith(HasSubstr("--min-p must be in [0, 1], but is -0.5")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--top-k", "-3"}),
              FailsWith(HasSubstr("--top-k must be")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--xtc-threshold", "0.7"}),
              FailsWith(HasSubstr("--xtc-threshold must be in [0, 0.5], but is "
                                  "0.7")));
  EXPECT_THAT(
      run({"generate", "--model", "/none", "--repetition-penalty", "-1"}),
      FailsWith(HasSubstr("--repetition-penalty must be")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--max-tokens", "0"}),
              FailsWith(HasSubstr("--max-tokens must be at least 1, or -1 for "
                                  "no limit, but is 0")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--max-kv-size", "-5"}),
              FailsWith(HasSubstr("--max-kv-size must be")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--logit-bias", "3"}),
              FailsWith(HasSubstr("--logit-bias takes ID:VALUE"), kUsage));
  EXPECT_THAT(run({"generate", "--model", "/none", "--stop", ""}),
              FailsWith(HasSubstr("--stop is empty")));
  EXPECT_THAT(run({"generate", "--model", "/none", "--deadline", "0"}),
              FailsWith(HasSubstr("--deadline must be")));
}

TEST_F(CliUsage, OptionsThatExcludeEachOther) {
  EXPECT_THAT(run({"generate", "--tokens", "1", "--prompt", "x"}),
              FailsWith(HasSubstr("--tokens is a whole prompt"), kUsage));
  EXPECT_THAT(run({"generate", "--top-logprobs", "2"}),
              FailsWith(HasSubstr("--top-logprobs needs --json"), kUsage));
  EXPECT_THAT(
      run({"score"}),
      FailsWith(HasSubstr("one of --text, --file and --tokens"), kUsage));
  EXPECT_THAT(
      run({"score", "--text", "x", "--tokens", "1"}),
      FailsWith(HasSubstr("one of --text, --file and --tokens"), kUsage));
  EXPECT_THAT(run({"info", "a", "--model", "b"}),
              FailsWith(HasSubstr("named twice"), kUsage));
}

TEST_F(CliUsage, ModelTypesAreThoseOfTheDocuments) {
  const ProcessResult markdown = run({"models", "--markdown"});
  std::ifstream file(MLXLM_SOURCE_FOLDER "/docs/MODELS.md");
  const std::string page(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(markdown.output, page)
      << "mlx-lm models --markdown > docs/MODELS.md writes it anew";
  EXPECT_THAT(run({"models"}).output,
              HasSubstr("\nlongcat_flash_ngram    latent attention"));
  const auto list = nlohmann::json::parse(run({"models", "--json"}).output);
  EXPECT_GE(list.size(), 100u);
  EXPECT_EQ(list[0]["model_type"], "afm7");
}

TEST_F(CliUsage, WhatIsNotImplementedSaysSo) {
  EXPECT_THAT(run({"generate", "--image", "a.png", "b.png"}),
              FailsWith(HasSubstr("--image isn't implemented")));
  EXPECT_THAT(run({"generate", "-qa"}),
              FailsWith(HasSubstr("--quantize-activations isn't implemented")));
  EXPECT_THAT(run({"benchmark", "--pipeline"}),
              FailsWith(HasSubstr("--pipeline")));
}

TEST_F(CliUsage, TokenIds) {
  EXPECT_THAT(run({"score", "--model", "/none", "--tokens", "1,two"}),
              FailsWith(HasSubstr("none")));
  EXPECT_THAT(run({"benchmark", "-n", "0"}),
              FailsWith(HasSubstr("--num-trials must be at least 1")));
}

}  // namespace
}  // namespace mlxlm
