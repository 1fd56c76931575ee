// Sessions on every kind of cache: what is read, what is answered.
#include <gtest/gtest.h>

#include <mlxlm/session.h>

#include "generate/chat_toy.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

struct Kind {
  const char* name;
  int window_tokens = 0;
  bool recurrent = false;
  bool hybrid = false;
  std::optional<int> kv_bits;
};

ModelPtr model_of(const Kind& kind) {
  ToyOptions toy{.window_tokens = kind.window_tokens, .context_tokens = 4096};
  if (kind.recurrent) {
    return std::make_shared<RecurrentToy>(kind.hybrid, toy);
  }
  return std::make_shared<ToyModel>(toy);
}

class SessionTest : public ::testing::TestWithParam<Kind> {
 protected:
  SessionOptions options() const {
    SessionOptions options;
    options.generate.max_tokens = 6;
    options.generate.sampler = letters();
    options.generate.kv_bits = GetParam().kv_bits;
    options.generate.kv_group_size = 32;
    options.generate.quantized_kv_start = 0;
    return options;
  }

  Session session() { return Session(model_, tokenizer_, options()); }

  // Answers, and checks the count of tokens with what the model saw.
  std::string counted(Session& session, GenerationStream stream) {
    model_->num_tokens = 0;
    std::string text = said(std::move(stream));
    const auto& turn = session.last_turn();
    EXPECT_EQ(model_->num_tokens, turn.read_tokens() + turn.generated_tokens);
    return text;
  }

  std::string rendered(const std::vector<Message>& messages) const {
    nlohmann::json list = nlohmann::json::array();
    for (const auto& message : messages) {
      list.push_back({{"role", message.role}, {"content", message.content}});
    }
    return tokenizer_->apply_chat_template(list.dump(), {});
  }

  // What the model answers when it reads all messages but the last anew.
  std::string cold(const Session& session) {
    auto messages = session.messages();
    messages.pop_back();
    auto prompt = tokenizer_->encode(rendered(messages), false);
    return said(
        stream_generate(model_, tokenizer_, prompt, options().generate));
  }

  // Quantized rows are attended to as they were quantized, chunk by chunk, so
  // that only the others equal a cold run.
  void expect_as_cold(const Session& session) {
    if (!GetParam().kv_bits) {
      EXPECT_EQ(session.messages().back().content, cold(session));
    }
  }

  std::shared_ptr<CountingModel> model_ =
      std::make_shared<CountingModel>(model_of(GetParam()));
  std::shared_ptr<ChatToyTokenizer> tokenizer_ =
      std::make_shared<ChatToyTokenizer>();
  TemporaryFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(
    Kinds,
    SessionTest,
    ::testing::Values(Kind{"Growing"},
                      Kind{"Window", 24},
                      Kind{"Recurrent", 0, true},
                      Kind{"Hybrid", 24, true, true},
                      Kind{"Quantized", 0, false, false, 8},
                      Kind{"QuantizedWindow", 24, false, false, 8}),
    [](const auto& info) { return info.param.name; });

TEST_P(SessionTest, TwentyTurnsReadOnlyNewTokens) {
  auto chat = session();
  chat.set_system("Be brief.");
  int held = 0;
  for (int i = 0; i < 20; ++i) {
    counted(chat, chat.respond("Message " + std::to_string(i)));
    const auto& turn = chat.last_turn();
    EXPECT_EQ(turn.reused_tokens, held) << i;
    EXPECT_EQ(turn.reread_tokens, 0) << i;
    EXPECT_EQ(turn.generated_tokens, 6) << i;
    held = turn.prompt_tokens + turn.generated_tokens;
    EXPECT_EQ(chat.cached_tokens(), held);
    if (i % 7 == 5) {
      expect_as_cold(chat);
    }
  }
  EXPECT_EQ(chat.messages().size(), 41u);
  EXPECT_EQ(chat.total().read_tokens() + chat.total().generated_tokens, held);
}

TEST_P(SessionTest, RegeneratingReadsNoneOfTheEarlierTurns) {
  auto chat = session();
  for (const char* text : {"One", "Two", "Three of them, and then some more"}) {
    said(chat.respond(text));
  }
  auto before = chat.messages();
  int prompt_tokens = chat.last_turn().prompt_tokens;
  EXPECT_EQ(counted(chat, chat.regenerate()), before.back().content);
  EXPECT_EQ(chat.messages(), before);
  EXPECT_EQ(chat.last_turn().prompt_tokens, prompt_tokens);
  // No more than "[assistant]".
  EXPECT_LE(chat.last_turn().read_tokens(), 11);
  counted(chat, chat.respond("Four"));
  EXPECT_EQ(chat.last_turn().reread_tokens, 0);
  expect_as_cold(chat);
}

TEST_P(SessionTest, EditingGoesBackToTheMessage) {
  auto chat = session();
  for (const char* text : {"One", "Two", "Three", "Four"}) {
    said(chat.respond(text));
  }
  counted(chat, chat.edit(4, "Five, which is longer"));
  EXPECT_EQ(chat.messages().size(), 6u);
  EXPECT_EQ(chat.messages()[4].content, "Five, which is longer");
  // Back to the end of the second answer: the bytes of what follows that, up to
  // where the messages differ, are read again at most.
  EXPECT_LE(chat.last_turn().reread_tokens, 8);
  expect_as_cold(chat);
  counted(chat, chat.respond("Six"));
  EXPECT_EQ(chat.last_turn().reread_tokens, 0);
  expect_as_cold(chat);
}

TEST_P(SessionTest, ForksGoTheirOwnWays) {
  auto one = session();
  said(one.respond("One"));
  said(one.respond("Two"));
  auto two = one.fork();
  counted(one, one.respond("Left"));
  counted(two, two.respond("Right"));
  for (auto* each : {&one, &two}) {
    EXPECT_EQ(each->last_turn().reread_tokens, 0);
    expect_as_cold(*each);
  }
  // The checkpoints are there in both.
  counted(two, two.edit(2, "Other"));
  EXPECT_LE(two.last_turn().reread_tokens, 8);
  expect_as_cold(two);
  counted(one, one.regenerate());
  EXPECT_LE(one.last_turn().read_tokens(), 11);
  expect_as_cold(one);
}

TEST_P(SessionTest, ResumesFromAFile) {
  std::string file = (folder_ / "chat.safetensors").string();
  auto chat = session();
  chat.set_system("Grüße, 你好");
  chat.set_tools("[1]");
  said(chat.respond("One"));
  said(chat.respond("Two"));
  chat.save(file, {{"model", "toy"}});
  auto again = Session::resume(file, model_, tokenizer_, options());
  EXPECT_EQ(again.messages(), chat.messages());
  EXPECT_EQ(again.cached_tokens(), chat.cached_tokens());
  EXPECT_EQ(load_prompt_cache(file).second.at("model"), "toy");
  EXPECT_EQ(counted(again, again.respond("Three")),
            counted(chat, chat.respond("Three")));
  EXPECT_EQ(again.last_turn().reused_tokens, chat.last_turn().reused_tokens);
  EXPECT_EQ(again.last_turn().reread_tokens, 0);
}

TEST_P(SessionTest, RewrittenAnswersAreReadAsTheTemplateHasThem) {
  tokenizer_->strips_thinking = true;
  auto chat = session();
  auto& generate = chat.options().generate;
  generate.max_tokens = 20;
  generate.sampler = scripted(bytes_of("<hm, well>Yes"));
  chat.options().generate.max_tokens = 13;
  EXPECT_EQ(said(chat.respond("A question that is long enough")),
            "<hm, well>Yes");
  int first_prompt = chat.last_turn().prompt_tokens;
  generate.sampler = letters();
  generate.max_tokens = 6;
  counted(chat, chat.respond("Another"));
  // All before the answer is reused, or all before "[assistant]".
  EXPECT_GE(chat.last_turn().reused_tokens, first_prompt - 11);
  EXPECT_LE(chat.last_turn().reused_tokens, first_prompt);
  expect_as_cold(chat);
}

TEST_P(SessionTest, WhatIsHeldAreTheTokensThatWereDrawn) {
  tokenizer_->merges = true;
  tokenizer_->trims = true;
  auto chat = session();
  auto& generate = chat.options().generate;
  auto script = bytes_of(" abab\n");
  script.push_back(ToyModel::kEnd);
  generate.max_tokens = 10;
  for (int i = 0; i < 4; ++i) {
    int held = chat.cached_tokens();
    generate.sampler = scripted(script);
    EXPECT_EQ(counted(chat, chat.respond("ab" + std::to_string(i))), " abab\n");
    EXPECT_EQ(chat.last_turn().reused_tokens, held);
    EXPECT_EQ(chat.last_turn().reread_tokens, 0);
  }
  // An answer that was taken back isn't put in place of another.
  chat.truncate(7);
  chat.add({"assistant", "abab and more", ""});
  counted(chat, chat.respond("ab"));
  auto prompt = rendered({chat.messages().begin(), chat.messages().end() - 1});
  // Of three drawn answers two blanks more, of seven "ab" a token less.
  EXPECT_EQ(chat.last_turn().prompt_tokens,
            static_cast<int>(prompt.size()) + 3 * 2 - 7);
}

TEST_P(SessionTest, AnAnswerCanBeStopped) {
  auto chat = session();
  said(chat.respond("One"));
  {
    auto stream = chat.respond("Two");
    expect_error(
        ErrorKind::argument, "is answering", [&] { chat.truncate(0); });
    expect_error(
        ErrorKind::argument, "is answering", [&] { chat.respond("Three"); });
    stream.next();
    stream.next();
  }
  EXPECT_EQ(chat.messages().back().role, "assistant");
  EXPECT_EQ(chat.messages().back().content.size(), 2u);
  EXPECT_EQ(chat.last_turn().generated_tokens, 2);
  counted(chat, chat.respond("Three"));
  EXPECT_EQ(chat.last_turn().reread_tokens, 0);
  expect_as_cold(chat);
}

TEST_P(SessionTest, AnAnswerThatNeverBeganLeavesNoTrace) {
  auto chat = session();
  said(chat.respond("One"));
  auto before = chat.messages();
  int held = chat.cached_tokens();
  chat.respond("Never asked for");
  EXPECT_EQ(chat.messages(), before);
  EXPECT_EQ(chat.cached_tokens(), held);
  // Cancelled while the prompt is read, chunk by chunk.
  chat.options().generate.prefill_step_tokens = 4;
  chat.options().generate.prompt_progress = [&](int done, int total) {
    EXPECT_LE(done, total);
    if (done >= 8) {
      chat.options().generate.cancel.cancel();
    }
  };
  auto stream = chat.respond("A long message that takes several chunks");
  auto part = stream.next();
  ASSERT_TRUE(part);
  EXPECT_EQ(part->finish_reason, "cancelled");
  EXPECT_EQ(part->token, -1);
  EXPECT_FALSE(stream.next());
  EXPECT_EQ(chat.messages(), before);
  chat.options() = options();
  counted(chat, chat.regenerate());
  EXPECT_EQ(chat.messages(), before);
  expect_as_cold(chat);
}

TEST_P(SessionTest, AFaultInTheMiddleIsSurvived) {
  auto chat = session();
  said(chat.respond("One"));
  auto before = chat.messages();
  chat.options().generate.sampler = [](const mx::array&) -> mx::array {
    throw Error(ErrorKind::memory, "no more");
  };
  {
    auto stream = chat.respond("Two");
    expect_error(ErrorKind::memory, "no more", [&] { stream.next(); });
  }
  EXPECT_EQ(chat.messages(), before);
  chat.options() = options();
  counted(chat, chat.respond("Two"));
  EXPECT_EQ(chat.last_turn().reused_tokens, 0);
  expect_as_cold(chat);
}

TEST_P(SessionTest, StopTextsAreNotPartOfTheAnswer) {
  auto chat = session();
  chat.options().generate.stop_texts = {"STOP"};
  chat.options().generate.sampler = scripted(bytes_of("yesSTOP"));
  chat.options().generate.max_tokens = 10;
  EXPECT_EQ(said(chat.respond("One")), "yes");
  EXPECT_EQ(chat.messages().back().content, "yes");
  chat.options() = options();
  counted(chat, chat.respond("Two"));
  expect_as_cold(chat);
}

TEST_P(SessionTest, SystemTextAndToolsMayChange) {
  auto chat = session();
  said(chat.respond("One"));
  chat.set_system("Be kind.");
  counted(chat, chat.respond("Two"));
  expect_as_cold(chat);
  chat.set_system("");
  EXPECT_EQ(chat.messages().front().role, "user");
  counted(chat, chat.respond("Three"));
  expect_as_cold(chat);
  chat.set_system("Be anything.");
  chat.reset();
  EXPECT_EQ(chat.messages(),
            (std::vector<Message>{{"system", "Be anything.", ""}}));
  tokenizer_->refuses_lone_system = true;
  counted(chat, chat.respond("Four"));
  expect_as_cold(chat);
}

TEST_P(SessionTest, SpeculationGivesTheSameAnswers) {
  auto plain = session();
  auto drafted = options();
  drafted.generate.draft_model = std::make_shared<ToyModel>(
      ToyOptions{.context_tokens = 4096, .noise = 0.1f});
  Session chat(model_, tokenizer_, drafted);
  for (const char* text : {"One", "Two", "Three"}) {
    auto answer = said(plain.respond(text));
    if (!GetParam().kv_bits) {
      EXPECT_EQ(said(chat.respond(text)), answer);
    } else {
      said(chat.respond(text));
    }
  }
  said(chat.regenerate());
  if (!GetParam().kv_bits) {
    EXPECT_EQ(chat.messages(), plain.messages());
  }
}

}  // namespace
}  // namespace mlxlm
