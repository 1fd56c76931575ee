#include "cli/arguments.h"

#include <functional>
#include <string>
#include <vector>

#include <gmock/gmock.h>

#include "cli/command.h"

namespace mlxlm::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string fault_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UsageError& fault) {
    return fault.what();
  }
  return "no error";
}

class Arguments : public ::testing::Test {
 protected:
  Arguments() {
    app_.set_version_flag("--version", "1");
    verb_ = app_.add_subcommand("generate", "");
    app_.add_subcommand("score", "");
    verb_->add_option("--temp", number_, "");
    verb_->add_option("--top-p", number_, "");
    verb_->add_option("--max-tokens,-m", number_, "");
  }

  std::string verb_fault(const std::vector<std::string>& words) {
    return fault_of([&] { check_verb(words, app_); });
  }

  CLI::App app_{"", "mlx-lm"};
  CLI::App* verb_ = nullptr;
  double number_ = 0;
};

TEST_F(Arguments, SeveralValuesBecomeSeveralUses) {
  EXPECT_THAT(normalized({"x", "--extra-eos-token", "A", "B", "--temp", "1"}),
              ElementsAre("x",
                          "--extra-eos-token",
                          "A",
                          "--extra-eos-token",
                          "B",
                          "--temp",
                          "1"));
  EXPECT_THAT(normalized({"--extra-eos-token"}),
              ElementsAre("--extra-eos-token"));
  EXPECT_THAT(normalized({"-qa"}), ElementsAre("--quantize-activations"));
}

TEST_F(Arguments, AVerbIsKnown) {
  EXPECT_EQ(verb_fault({"mlx-lm", "score", "anything"}), "no error");
  EXPECT_EQ(verb_fault({"mlx-lm", "--version"}), "no error");
  EXPECT_EQ(verb_fault({"mlx-lm", "--help"}), "no error");
}

TEST_F(Arguments, AnUnknownVerbSuggestsTheNearest) {
  EXPECT_EQ(verb_fault({"mlx-lm", "genrate"}),
            "unknown command \"genrate\"; did you mean generate?");
  EXPECT_EQ(verb_fault({"mlx-lm", "xyzzy"}),
            "unknown command \"xyzzy\"; see mlx-lm --help");
  EXPECT_EQ(verb_fault({"mlx-lm", "--versoin"}),
            "unknown option --versoin before a command; did you mean "
            "--version?");
  EXPECT_THAT(verb_fault({"mlx-lm"}), HasSubstr("a command is missing"));
}

TEST_F(Arguments, AnUnknownOptionSuggestsTheNearest) {
  EXPECT_EQ(describe_leftover({"--tmep", "1"}, *verb_),
            "unknown option --tmep; did you mean --temp?");
  EXPECT_EQ(describe_leftover({"--tmep=1"}, *verb_),
            "unknown option --tmep; did you mean --temp?");
  EXPECT_EQ(describe_leftover({"--zzzzzzzzzz"}, *verb_),
            "unknown option --zzzzzzzzzz; see mlx-lm generate --help");
  EXPECT_EQ(describe_leftover({"hello"}, *verb_),
            "unexpected argument \"hello\"");
}

TEST_F(Arguments, LibraryNamesBecomeOptionNames) {
  EXPECT_EQ(with_option_name("temperature must be 1", *verb_),
            "--temp must be 1");
  EXPECT_EQ(with_option_name("top_p must be 1", *verb_), "--top-p must be 1");
  EXPECT_EQ(with_option_name("config.json: x", *verb_), "config.json: x");
  EXPECT_EQ(with_option_name("", *verb_), "");
}

TEST_F(Arguments, TokenIds) {
  EXPECT_THAT(parse_token_ids("1,2,3", "--tokens"), ElementsAre(1, 2, 3));
  EXPECT_THAT(parse_token_ids("[1, 2,\n3]", "--tokens"), ElementsAre(1, 2, 3));
  EXPECT_EQ(fault_of([] { parse_token_ids("1,x", "--tokens"); }),
            "--tokens takes token ids like \"1,2,3\", not \"x\"");
  EXPECT_EQ(fault_of([] { parse_token_ids("-1", "--tokens"); }),
            "--tokens takes token ids like \"1,2,3\", not \"-1\"");
  EXPECT_THAT(fault_of([] { parse_token_ids("99999999999", "--tokens"); }),
              HasSubstr("99999999999"));
  EXPECT_THAT(fault_of([] { parse_token_ids(" ", "--tokens"); }),
              HasSubstr("is empty"));
}

TEST_F(Arguments, EscapesAsTheReference) {
  EXPECT_EQ(unescaped("a\\nb\\tc\\\\d\\"), "a\nb\tc\\\\d\\");
}

}  // namespace
}  // namespace mlxlm::cli
