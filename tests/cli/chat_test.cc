// chat from a pipe: messages, commands, full contexts.
#include <mlxlm/cache.h>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr int kUsage = 2;

class CliChat : public CliTest {
 protected:
  void SetUp() override { write_model({.num_layers = 1}); }

  // Answers are "AAA".
  ProcessResult chat(const std::string& lines,
                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words{
        "chat", "--model", model(), "--logit-bias", "65:1000", "-m", "3"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words, lines);
  }

  std::string file() const { return path("chat.safetensors"); }

  // What a saved chat has of its messages: "role: content" each.
  std::vector<std::string> saved_messages() const {
    auto metadata = load_prompt_cache(file()).second;
    json chat = json::parse(metadata.at("mlxlm.session"));
    std::vector<std::string> lines;
    for (const auto& message : chat.at("messages")) {
      lines.push_back(message.at("role").get<std::string>() + ": " +
                      message.at("content").get<std::string>());
    }
    return lines;
  }

  std::string saving() const { return "/save " + file() + "\n"; }
};

TEST_F(CliChat, EveryLineIsAnswered) {
  ProcessResult result = chat("Hello\n\nAgain\r\nno line end");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(result.output, "AAA\nAAA\nAAA\n");
  EXPECT_EQ(result.errors, "");
  EXPECT_EQ(chat("").output, "");
}

TEST_F(CliChat, DraftsGiveTheSameAnswers) {
  auto answers = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"chat", "--model", model(), "-m", "12"};
    words.insert(words.end(), more.begin(), more.end());
    ProcessResult result = run(words, "one two\nonce more\n");
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return result.output;
  };
  const auto plain = answers({});
  EXPECT_EQ(answers({"--draft", "ngram", "--num-draft-tokens", "3"}), plain);
  EXPECT_EQ(answers({"--draft-model", model()}), plain);
  EXPECT_THAT(chat("a", {"--draft", "mtp"}).errors,
              HasSubstr("has no draft head"));
  write_model_with_head();
  EXPECT_EQ(answers({"--draft", "mtp", "--num-draft-tokens", "2"}),
            answers({}));
}

TEST_F(CliChat, TurnsReadOnlyWhatIsNew) {
  // "<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n" has 22 tokens,
  // and "<|im_end|>\n" are 2 more in the second turn.
  ProcessResult result = chat("abc\nabc\n/regenerate\n/stats\n/exit\nnever");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output,
              AllOf(StartsWith("AAA\nAAA\nAAA\nchat "),
                    HasSubstr("4 messages in \"main\""),
                    HasSubstr("52 tokens of 512"),
                    HasSubstr("last answer  49 tokens of prompt: 1 read (0 of "
                              "them again), 48 reused; 3 generated"),
                    HasSubstr("all answers  120 tokens of prompt: 47 read (0 "
                              "of them again), 73 reused; 9 generated")));
}

TEST_F(CliChat, MessagesOfSeveralLinesAndWithASlash) {
  ProcessResult result = chat(
      "one\\\ntwo\n\"\"\"\nthree\n\nfour \n\"\"\"\n\"\"\"five\nsix\"\"\"\n"
      "//etc\n" +
      saving());
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(saved_messages(),
            (std::vector<std::string>{"user: one\ntwo",
                                      "assistant: AAA",
                                      "user: three\n\nfour ",
                                      "assistant: AAA",
                                      "user: five\nsix",
                                      "assistant: AAA",
                                      "user: /etc",
                                      "assistant: AAA"}));
}

TEST_F(CliChat, SystemEditResetAndHelp) {
  ProcessResult result = chat("Hi\nYou\n/edit 1\nHello, 你好\n" + saving(),
                              {"--system-prompt", "Be kind."});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(saved_messages(),
            (std::vector<std::string>{
                "system: Be kind.", "user: Hello, 你好", "assistant: AAA"}));
  result =
      chat("Hi\nr\n/system Be brief.\nYou\n/edit\nWe\n/edit\n\n" + saving());
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(saved_messages(),
            (std::vector<std::string>{
                "system: Be brief.", "user: We", "assistant: AAA"}));
  result = chat("h\nq\nHi\n");
  EXPECT_EQ(result.exit_code, 0);
  for (const char* command : {"/help",
                              "/reset",
                              "/save",
                              "/load",
                              "/system",
                              "/regenerate",
                              "/edit",
                              "/fork",
                              "/stats",
                              "/exit"}) {
    EXPECT_THAT(result.output, HasSubstr(command));
  }
  EXPECT_THAT(result.output, Not(HasSubstr("AAA")));
}

TEST_F(CliChat, ForksAreChatsOfTheirOwn) {
  ProcessResult result =
      chat("Hi\n/fork other\nRight\n/switch main\nLeft\n" + saving());
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(saved_messages(),
            (std::vector<std::string>{
                "user: Hi", "assistant: AAA", "user: Left", "assistant: AAA"}));
  result = chat("Hi\n/fork other\nRight\n" + saving());
  EXPECT_EQ(saved_messages()[2], "user: Right");
  EXPECT_THAT(chat("/switch else\n").errors,
              HasSubstr("no copy named \"else\", only main"));
  EXPECT_THAT(chat("/fork main\n").errors, HasSubstr("main already"));
}

TEST_F(CliChat, ASavedChatGoesOnWithoutReadingItAgain) {
  ASSERT_EQ(chat("abc\n" + saving()).exit_code, 0);
  std::vector<std::string> words{
      "chat", "--resume", file(), "--logit-bias", "65:1000", "-m", "3"};
  ProcessResult result = run(words, "abc\n/stats\n");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("24 read (0 of them again), 25 reused"));
  result = chat("x\n/load " + file() + "\nabc\n/stats\n");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors, HasSubstr("loaded 2 messages and 25 tokens"));
  EXPECT_THAT(result.output, HasSubstr("24 read (0 of them again), 25 reused"));
  // It is a prompt cache as well.
  result =
      run({"generate", "--prompt-cache-file", file(), "-p", "x", "-m", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  write_model({.num_layers = 2});
  EXPECT_THAT(run(words, "abc\n"), FailsWith(HasSubstr("saved with 1 layers")));
}

TEST_F(CliChat, AFullContextIsSaidAndActedOn) {
  std::string lines;
  for (int i = 0; i < 8; ++i) {
    lines += "abcdefghij\n";
  }
  ProcessResult result = chat(lines, {"--context", "60"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.output, "AAA\n");
  EXPECT_THAT(result.errors, HasSubstr("the context of 60 tokens is full"));
  result = chat("abcdefghij\n", {"--context", "31"});
  EXPECT_EQ(result.output, "AA\n");
  EXPECT_THAT(result.errors,
              HasSubstr("the context of 31 tokens is full: the answer ends"));
  result = chat(lines, {"--context", "90", "--full-context", "drop"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors,
              HasSubstr("the context of 90 tokens is full: the oldest"));
  result = chat(lines, {"--context", "60", "--full-context", "rotate"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors, HasSubstr("from here on the oldest tokens"));
  result = chat(lines, {"--max-kv-size", "60"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors, HasSubstr("from here on the oldest tokens"));
}

TEST_F(CliChat, ModelsWithoutATemplateNeedOne) {
  json config = tiny_tokenizer_config();
  config.erase("chat_template");
  write_text(folder_ / "model/tokenizer_config.json", config.dump());
  EXPECT_THAT(chat("Hi\n"),
              FailsWith(AllOf(HasSubstr("no chat template"),
                              HasSubstr("--chat-template"))));
  write_text(folder_ / "template", "{{ messages[-1]['content'] }}:");
  ProcessResult result = chat("Hi\n", {"--chat-template", path("template")});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(result.output, "AAA\n");
}

TEST_F(CliChat, BadUse) {
  EXPECT_THAT(chat("", {"--full-context", "wait"}),
              FailsWith(HasSubstr("stop, rotate or drop"), kUsage));
  EXPECT_THAT(chat("", {"-m", "0"}), FailsWith(HasSubstr("--max-tokens")));
  EXPECT_THAT(chat("", {"--context", "-1"}), FailsWith(HasSubstr("--context")));
  EXPECT_THAT(chat("", {"--pipeline"}), FailsWith(HasSubstr("--pipeline")));
  EXPECT_THAT(chat("/rest\n"), FailsWith(HasSubstr("did you mean /reset?")));
  EXPECT_THAT(chat("/save\n"), FailsWith(HasSubstr("/save needs a file")));
  EXPECT_THAT(chat("/load nowhere\n"), FailsWith(HasSubstr("nowhere")));
  EXPECT_THAT(chat("/regenerate\n"),
              FailsWith(HasSubstr("no message to answer")));
  EXPECT_THAT(chat("/edit\n"), FailsWith(HasSubstr("you have 0 messages")));
  EXPECT_THAT(chat("/edit x\n"), FailsWith(HasSubstr("not \"x\"")));
}

}  // namespace
}  // namespace mlxlm
