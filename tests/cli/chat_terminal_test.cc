// chat at a pseudo-terminal: editing, history, Ctrl-C, Ctrl-D.
#include <filesystem>

#include <mlxlm/cache.h>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kControlC[] = "\x03";
constexpr char kControlD[] = "\x04";
constexpr char kControlP[] = "\x10";

class CliTerminal : public CliTest {
 protected:
  void SetUp() override {
    if (!MLXLM_HAS_LIBEDIT) {
      GTEST_SKIP() << "built without libedit";
    }
    write_model({.num_layers = 1});
  }

  ProcessOptions at_terminal() const {
    ProcessOptions options = process_options();
    options.terminal = true;
    options.environment["TERM"] = "dumb";
    options.environment["LC_ALL"] = "C";
    return options;
  }

  // Answers are "AAA"; more of them with further options.
  std::vector<std::string> chat(
      const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words{
        "chat", "--model", model(), "--logit-bias", "65:1000", "-m", "3"};
    words.insert(words.end(), more.begin(), more.end());
    return command(words);
  }

  // A chat that answers for ever.
  std::vector<std::string> endless() const {
    return chat({"-m", "-1", "--context", "64", "--full-context", "rotate"});
  }

  // Ctrl-D, at the next prompt.
  static void leave(Process& process) {
    process.wait_for("\r\n> ");
    process.type(kControlD);
  }

  json saved_messages() const {
    auto metadata = load_prompt_cache(path("chat.safetensors")).second;
    return json::parse(metadata.at("mlxlm.session")).at("messages");
  }
};

TEST_F(CliTerminal, AnswersAndLeavesWithControlD) {
  Process process(chat(), at_terminal());
  process.wait_for("/help lists the commands");
  process.wait_for("\r\n> ");
  process.type("Hello\n");
  process.wait_for("AAA\r\n[3 tokens, cut by the limit, ");
  process.wait_for("\r\n> ");
  process.type("/nonsense\n");
  process.wait_for("mlx-lm: error: unknown command /nonsense");
  leave(process);
  ProcessResult result = process.finish();
  EXPECT_EQ(result.exit_code, 0) << result.output;
}

TEST_F(CliTerminal, ControlCStopsTheAnswerOnly) {
  Process process(endless(), at_terminal());
  for (int i = 0; i < 2; ++i) {
    process.wait_for("\r\n> ");
    process.type("Hello\n");
    process.wait_for("AAAAAAAAAA");
    process.type(kControlC);
    process.wait_for("tokens, stopped, ");
  }
  process.wait_for("\r\n> ");
  process.type("/save " + path("chat.safetensors") + "\n/exit\n");
  EXPECT_EQ(process.finish().exit_code, 0);
  // What there was of the answers is kept.
  json messages = saved_messages();
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_THAT(messages[1]["content"], HasSubstr("AAAAAAAAAA"));
}

TEST_F(CliTerminal, ControlCGivesALineUp) {
  Process process(chat(), at_terminal());
  process.wait_for("\r\n> ");
  process.type("not this");
  process.wait_for("this");
  process.type(kControlC);
  process.wait_for("^C");
  process.wait_for("\r\n> ");
  process.type("\"\"\"nor\n");
  process.wait_for("\r\n. ");
  process.type(kControlC);
  process.wait_for("^C");
  process.wait_for("\r\n> ");
  process.type("this\n");
  process.wait_for("AAA");
  process.type("/save " + path("chat.safetensors") + "\n");
  process.wait_for("saved 2 messages");
  leave(process);
  EXPECT_EQ(process.finish().exit_code, 0);
  EXPECT_EQ(saved_messages()[0]["content"], "this");
}

TEST_F(CliTerminal, LinesAreEditedAndRemembered) {
  std::string save = "/save " + path("chat.safetensors") + "\n";
  {
    Process process(chat(), at_terminal());
    process.wait_for("\r\n> ");
    // Ctrl-A, Ctrl-E and deleting know characters.
    process.type(
        "r\xC3\xBC\xC3\x9F\xE4\xBD\xA0\x7F\x01G\x05"
        "e\n");
    process.wait_for("AAA");
    process.type(save);
    process.wait_for("saved 2 messages");
    process.type("/exit\n");
    EXPECT_EQ(process.finish().exit_code, 0);
    EXPECT_EQ(saved_messages()[0]["content"],
              "Gr\xC3\xBC\xC3\x9F"
              "e");
  }
  // The history of the chat before: /exit, /save, the message.
  Process process(chat(), at_terminal());
  process.wait_for("\r\n> ");
  process.type(std::string(kControlP) + kControlP + kControlP + "!\n");
  process.wait_for("AAA");
  process.type("/edit\n");
  process.wait_for("!");
  process.type("?\n");
  process.wait_for("AAA");
  process.type(save);
  process.wait_for("saved 2 messages");
  leave(process);
  EXPECT_EQ(process.finish().exit_code, 0);
  EXPECT_EQ(saved_messages()[0]["content"],
            "Gr\xC3\xBC\xC3\x9F"
            "e!?");
}

TEST_F(CliTerminal, TheHistoryCanBeLeftOut) {
  Process process(chat({"--no-history"}), at_terminal());
  process.wait_for("\r\n> ");
  process.type("secret\n");
  process.wait_for("AAA");
  leave(process);
  EXPECT_EQ(process.finish().exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(path("cache/mlx-lm/chat_history")));
}

}  // namespace
}  // namespace mlxlm
