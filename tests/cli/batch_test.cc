// batch: answers, faults, and going on after a kill.
#include <csignal>
#include <fstream>
#include <map>
#include <thread>

#include "core/file.h"
#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class CliBatch : public CliTest {
 protected:
  void SetUp() override { write_model(); }

  ProcessResult batch(const std::vector<std::string>& arguments,
                      const std::string& input = "") const {
    std::vector<std::string> words{"batch", "--model", model()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run(words, input);
  }

  // By id, as JSON text; every id once.
  static std::map<std::string, json> answers_in(const std::string& lines) {
    std::map<std::string, json> answers;
    std::istringstream stream(lines);
    for (std::string line; std::getline(stream, line);) {
      json answer = json::parse(line);
      EXPECT_TRUE(answers.emplace(answer["id"].dump(), answer).second) << line;
    }
    return answers;
  }

  std::string requests(int count, int max_tokens) const {
    std::string lines;
    for (int i = 0; i < count; ++i) {
      lines += json{{"id", i},
                    {"tokens", {65 + i % 20, 66, 67 + i % 7}},
                    {"max_tokens", max_tokens},
                    {"ignore_eos", true}}
                   .dump() +
               "\n";
    }
    return lines;
  }
};

TEST_F(CliBatch, AnswersAreGenerates) {
  const auto result =
      batch({},
            R"({"id": "Größe", "tokens": [65, 66], "max_tokens": 5}
{"tokens": [70], "max_tokens": 7, "temp": 0.9, "seed": 4, "ignore_eos": true}

{"id": 9, "prompt": "abc", "max_tokens": 3}
)");
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  auto answers = answers_in(result.output);
  ASSERT_EQ(answers.size(), 3u);
  json plain = json_of(generate({"--tokens", "65,66", "-m", "5", "--json"}));
  EXPECT_EQ(answers["\"Größe\""]["tokens"], plain["tokens"]);
  EXPECT_EQ(answers["\"Größe\""]["text"], plain["text"]);
  EXPECT_EQ(answers["\"Größe\""]["finish_reason"], plain["finish_reason"]);
  // Its own random numbers, whatever the others do.
  const auto again = answers_in(
      batch({},
            R"({"id": 2, "tokens": [70], "max_tokens": 7, "temp": 0.9, )"
            R"("seed": 4, "ignore_eos": true})")
          .output);
  EXPECT_EQ(answers["2"]["tokens"], again.at("2")["tokens"]);
  json text = json_of(generate({"--prompt", "abc", "-m", "3", "--json"}));
  EXPECT_EQ(answers["9"]["tokens"], text["tokens"]);
}

TEST_F(CliBatch, DraftsChangeNothingAndAreCounted) {
  const auto lines = requests(5, 40);
  const auto plain = answers_in(batch({}, lines).output);
  const auto result =
      batch({"--draft", "ngram", "--num-draft-tokens", "3"}, lines);
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  int accepted = 0;
  for (auto [id, answer] : answers_in(result.output)) {
    EXPECT_FALSE(plain.at(id).contains("speculation"));
    EXPECT_EQ(answer["tokens"], plain.at(id)["tokens"]);
    const auto speculation = answer["speculation"];
    EXPECT_EQ(speculation["draft"], "ngram");
    EXPECT_LE(speculation["accepted_tokens"], speculation["drafted_tokens"]);
    accepted += speculation["accepted_tokens"].get<int>();
  }
  EXPECT_GT(accepted, 0);
}

// All that generate takes; a line may choose otherwise.
TEST_F(CliBatch, DraftModelsAndHeadsDraft) {
  write_model_with_head();
  std::string lines = requests(3, 20);
  const auto plain = answers_in(batch({}, lines).output);
  lines += R"({"id": 10, "tokens": [65, 66, 67], "max_tokens": 20, )"
           R"("ignore_eos": true, "draft": "none"}
{"id": 11, "tokens": [65, 66, 67], "max_tokens": 20, )"
           R"("ignore_eos": true, "draft": "ngram", "num_draft_tokens": 5}
)";
  for (const auto& [kind, option] :
       {std::pair<std::string, std::string>{"model", "--draft-model"},
        {"mtp", "--draft"}}) {
    const auto result = batch(
        {option, kind == "mtp" ? kind : model(), "--num-draft-tokens", "2"},
        lines);
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    auto answers = answers_in(result.output);
    ASSERT_EQ(answers.size(), 5u);
    for (const auto& [id, answer] : plain) {
      EXPECT_EQ(answers[id]["tokens"], answer["tokens"]);
      EXPECT_EQ(answers[id]["speculation"]["draft"], kind);
      EXPECT_GT(answers[id]["speculation"]["drafted_tokens"], 0);
    }
    EXPECT_FALSE(answers["10"].contains("speculation"));
    EXPECT_EQ(answers["11"]["speculation"]["draft"], "ngram");
    EXPECT_EQ(answers["10"]["tokens"], plain.at("0")["tokens"]);
    EXPECT_EQ(answers["11"]["tokens"], plain.at("0")["tokens"]);
  }
}

TEST_F(CliBatch, RequestsThatBeginAlikeAreReadOnce) {
  auto request = [](int id, const std::string& tenant, int last) {
    std::vector<int> tokens(40, 65);
    tokens.push_back(last);
    return json{{"id", id},
                {"tokens", tokens},
                {"max_tokens", 3},
                {"tenant", tenant},
                {"ignore_eos", true}}
               .dump() +
           "\n";
  };
  const std::string input =
      request(0, "a", 66) + request(1, "a", 67) + request(2, "b", 68);
  auto warm = answers_in(batch({}, input).output);
  auto cold = answers_in(batch({"--prefix-memory", "0"}, input).output);
  ASSERT_EQ(warm.size(), 3u);
  ASSERT_EQ(cold.size(), 3u);
  for (const auto& [id, answer] : warm) {
    EXPECT_EQ(answer["tokens"], cold[id]["tokens"]);
    EXPECT_EQ(answer["reused_tokens"], id == "1" ? 40 : 0);
    EXPECT_EQ(cold[id]["reused_tokens"], 0);
  }
  EXPECT_EQ(batch({"--prefix-memory", "much"}).exit_code, 2);
}

TEST_F(CliBatch, FaultsAreTheirLinesOwn) {
  const auto result = batch({}, R"({"id": 1, "tokens": [65], "max_tokens": 2}
not JSON
{"id": 1, "tokens": [66]}
{"id": 3}
{"id": 4, "tokens": [1], "prompt": "x"}
{"id": 5, "tokens": [1], "max_token": 3}
{"id": 6, "tokens": [1], "temp": "hot"}
{"id": 7, "tokens": [99999999]}
{"id": 8, "tokens": [1], "top_p": 7, "temp": 1}
{"id": 9, "tokens": [65], "max_tokens": 0}
{"id": 10, "tokens": [65], "draft": "model"}
{"id": 11, "tokens": [65], "draft": "mtp"}
{"id": 12, "tokens": [65], "draft": "oracle"}
{"id": 13, "tokens": [65], "draft": "ngram", "num_draft_tokens": 0}
)");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.errors, HasSubstr("13 of 14 requests failed"));
  std::map<std::string, std::string> errors;
  std::istringstream stream(result.output);
  for (std::string line; std::getline(stream, line);) {
    json answer = json::parse(line);
    if (answer.contains("error")) errors[answer["id"].dump()] = answer["error"];
  }
  EXPECT_THAT(errors["1"], HasSubstr("was there before"));
  EXPECT_THAT(errors["2"], HasSubstr("not valid JSON"));
  EXPECT_THAT(errors["3"], HasSubstr("needs \"prompt\""));
  EXPECT_THAT(errors["4"], HasSubstr("one of prompt"));
  EXPECT_THAT(errors["5"], HasSubstr("\"max_token\" is no field"));
  EXPECT_THAT(errors["6"], HasSubstr("\"temp\" must be a number"));
  EXPECT_THAT(errors["7"], HasSubstr("outside the model's vocabulary"));
  EXPECT_THAT(errors["8"], HasSubstr("top_p"));
  EXPECT_THAT(errors["9"], HasSubstr("max_tokens is 0"));
  EXPECT_THAT(errors["10"], HasSubstr("there is no --draft-model"));
  EXPECT_THAT(errors["11"], HasSubstr("it takes --draft mtp"));
  EXPECT_THAT(errors["12"], HasSubstr("none, ngram, mtp or model"));
  EXPECT_THAT(errors["13"], HasSubstr("num_draft_tokens is 0"));
}

TEST_F(CliBatch, GoesOnAfterAKill) {
  const std::string input = path("requests.jsonl");
  const std::string output = path("answers.jsonl");
  std::ofstream(input) << requests(40, 60);
  const std::vector<std::string> words{"batch",
                                       "--model",
                                       model(),
                                       "-i",
                                       input,
                                       "-o",
                                       output,
                                       "--max-rows",
                                       "3"};
  {
    Process process(command(words), process_options());
    // Some answers are there, others are not.
    while (!std::filesystem::exists(output) || read_file(output).size() < 500) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    process.send(SIGKILL);
    process.finish();
  }
  const auto before = answers_in(read_file(output));
  EXPECT_LT(before.size(), 40u);
  std::ofstream(output, std::ios::app) << R"({"id": 39, "text": "cut o)";
  const auto result = run(words);
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors,
              HasSubstr(std::to_string(before.size()) +
                        " requests were answered before"));
  const auto all = answers_in(read_file(output));
  EXPECT_EQ(all.size(), 40u);
  for (const auto& [id, answer] : before) EXPECT_EQ(all.at(id), answer);
}

TEST_F(CliBatch, OutputsThatArentItsOwnAreLeft) {
  const std::string other = path("notes.txt");
  std::ofstream(other) << "my notes\n";
  auto result = batch({"-o", other}, requests(1, 1));
  EXPECT_THAT(result, FailsWith(HasSubstr("notes.txt, line 1")));
  EXPECT_EQ(read_file(other), "my notes\n");
  EXPECT_THAT(batch({"-i", path("none.jsonl")}),
              FailsWith(HasSubstr("can't open")));
  EXPECT_THAT(batch({"-o", path("no/such/folder")}),
              FailsWith(HasSubstr("can't open")));
}

TEST_F(CliBatch, ControlCKeepsWhatWasAnswered) {
  const std::string input = path("requests.jsonl");
  const std::string output = path("answers.jsonl");
  std::ofstream(input) << requests(2000, 200);
  Process process(
      command({"batch", "--model", model(), "-i", input, "-o", output}),
      process_options());
  while (!std::filesystem::exists(output) || read_file(output).size() < 50) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  process.send(SIGINT);
  EXPECT_EQ(process.finish().exit_code, 130);
  const std::string lines = read_file(output);
  EXPECT_TRUE(lines.ends_with("\n"));
  EXPECT_GE(std::count(lines.begin(), lines.end(), '\n'), 1);
}

}  // namespace
}  // namespace mlxlm
