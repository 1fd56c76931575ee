// A session's limits: full contexts, checkpoints' memory, bad use, bad files.
#include <gtest/gtest.h>

#include <mlxlm/session.h>

#include "core/log.h"
#include "generate/chat_toy.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

class SessionLimits : public ::testing::Test {
 protected:
  Session session(int context_tokens, FullContext when_full) {
    SessionOptions options = brief();
    options.context_tokens = context_tokens;
    options.when_full = when_full;
    return Session(model_, tokenizer_, options);
  }

  static SessionOptions brief() {
    SessionOptions options;
    options.generate.max_tokens = 10;
    options.generate.sampler = letters();
    return options;
  }

  ModelPtr model_ =
      std::make_shared<ToyModel>(ToyOptions{.context_tokens = 200});
  std::shared_ptr<ChatToyTokenizer> tokenizer_ =
      std::make_shared<ChatToyTokenizer>();
  TemporaryFolder folder_;
};

TEST_F(SessionLimits, StopSaysThatTheContextIsFull) {
  // "[user]" + 20 + "|" + "[assistant]" are 38 tokens.
  auto chat = session(45, FullContext::stop);
  said(chat.respond("12345678901234567890"));
  EXPECT_EQ(chat.last_turn().generated_tokens, 7);
  EXPECT_TRUE(chat.last_turn().context_full);
  auto before = chat.messages();
  expect_error(ErrorKind::argument,
               "the context of 45 tokens is full: the messages have 68",
               [&] { chat.respond("More"); });
  EXPECT_EQ(chat.messages(), before);
  // A shorter beginning still fits.
  said(chat.edit(0, "Hi"));
  EXPECT_EQ(chat.last_turn().generated_tokens, 10);
  EXPECT_FALSE(chat.last_turn().context_full);
}

TEST_F(SessionLimits, TheModelsOwnContextCounts) {
  Session chat(model_, tokenizer_, brief());
  EXPECT_EQ(chat.context_tokens(), 200);
  expect_error(ErrorKind::argument, "the context of 200 tokens is full", [&] {
    chat.respond(std::string(190, 'x'));
  });
}

TEST_F(SessionLimits, DropOldestKeepsTheSystemMessage) {
  auto chat = session(200, FullContext::drop_oldest);
  chat.set_system("Be kind.");
  int num_dropped = 0;
  for (int i = 0; i < 20; ++i) {
    said(chat.respond("Message " + std::to_string(i)));
    const auto& turn = chat.last_turn();
    EXPECT_LE(turn.prompt_tokens + turn.generated_tokens, 200);
    EXPECT_EQ(turn.context_full, turn.dropped_messages > 0);
    num_dropped += turn.dropped_messages;
    EXPECT_EQ(turn.generated_tokens, 10);
    EXPECT_EQ(chat.messages().front().role, "system");
    EXPECT_EQ(chat.messages()[1].role, "user");
    if (turn.dropped_messages > 0) {
      // The system message is common, and half of the context is free.
      EXPECT_GE(turn.reused_tokens, 17);
      EXPECT_LE(turn.prompt_tokens, 100);
    }
  }
  EXPECT_EQ(num_dropped, chat.total().dropped_messages);
  EXPECT_EQ(chat.messages().size(), 41u - static_cast<unsigned>(num_dropped));
  EXPECT_GT(num_dropped, 20);
  expect_error(ErrorKind::argument, "is full", [&] {
    chat.respond(std::string(200, 'x'));
  });
}

TEST_F(SessionLimits, RotateReadsOn) {
  auto chat = session(80, FullContext::rotate);
  int held = 0;
  for (int i = 0; i < 10; ++i) {
    said(chat.respond("Message " + std::to_string(i)));
    const auto& turn = chat.last_turn();
    EXPECT_EQ(turn.reused_tokens, held);
    held = turn.prompt_tokens + turn.generated_tokens;
    EXPECT_EQ(turn.context_full, held > 80);
  }
  EXPECT_EQ(chat.messages().size(), 20u);
  EXPECT_LT(chat.cache_bytes(), 2u * 2 * 64 * 4 * 120);
}

TEST_F(SessionLimits, CheckpointsStayWithinTheirBudget) {
  auto windowed = std::make_shared<ToyModel>(
      ToyOptions{.window_tokens = 16, .context_tokens = 4096});
  auto limited = brief();
  limited.checkpoint_bytes = 60000;
  Session chat(windowed, tokenizer_, limited);
  Session free(windowed, tokenizer_, brief());
  for (int i = 0; i < 12; ++i) {
    std::string text = "Message " + std::to_string(i);
    EXPECT_EQ(said(chat.respond(text)), said(free.respond(text)));
    EXPECT_LE(chat.checkpoint_bytes(), 60000u);
  }
  EXPECT_GT(free.checkpoint_bytes(), 120000u);
  // The newest are there; for an early message all is read again but the first.
  said(chat.regenerate());
  EXPECT_LE(chat.last_turn().read_tokens(), 11);
  auto early = chat.fork();
  EXPECT_EQ(said(early.edit(12, "Else")), said(free.edit(12, "Else")));
  EXPECT_GT(early.last_turn().reread_tokens, 100);
  EXPECT_LE(free.last_turn().reread_tokens, 8);
  limited.checkpoint_bytes = 0;
  Session least(windowed, tokenizer_, limited);
  said(least.respond("One"));
  said(least.respond("Two"));
  said(least.regenerate());
  EXPECT_LE(least.last_turn().read_tokens(), 11);
}

TEST_F(SessionLimits, BadUse) {
  expect_error(ErrorKind::argument, "needs a tokenizer", [&] {
    Session(model_, nullptr);
  });
  expect_error(ErrorKind::chat_template, "no chat template", [&] {
    Session(model_, std::make_shared<ToyTokenizer>());
  });
  Session chat(model_, tokenizer_, brief());
  for (const char* role : {"", "system"}) {
    chat.set_system(role);
    expect_error(
        ErrorKind::argument, "no message to answer", [&] { chat.respond(); });
    expect_error(ErrorKind::argument, "no message to answer", [&] {
      chat.regenerate();
    });
  }
  said(chat.respond("One"));
  for (std::size_t message : {0u, 2u, 3u, 99u}) {
    expect_error(ErrorKind::argument, "can't be edited", [&] {
      chat.edit(message, "x");
    });
  }
  expect_error(ErrorKind::argument, "must be a JSON object", [&] {
    chat.add({"tool", "x", "[1]"});
  });
  chat.options().generate.max_tokens = 0;
  expect_error(
      ErrorKind::argument, "max_tokens is 0", [&] { chat.respond("Two"); });
  EXPECT_EQ(chat.messages().size(), 3u);
  EXPECT_GT(chat.cached_tokens(), 0);
}

TEST_F(SessionLimits, MessagesKeepTheirFields) {
  Session chat(model_, tokenizer_, brief());
  chat.add({"user", "Ask", ""});
  chat.add({"assistant", "", R"({"tool_calls":[{"id":1}]})"});
  chat.add({"tool", "42", ""});
  said(chat.respond());
  std::string file = (folder_ / "chat.safetensors").string();
  chat.save(file);
  auto again = Session::resume(file, model_, tokenizer_, brief());
  EXPECT_EQ(again.messages(), chat.messages());
}

class SessionFiles : public SessionLimits {
 protected:
  SessionFiles() {
    Session chat(model_, tokenizer_, brief());
    said(chat.respond("One"));
    chat.save(file_);
  }

  Session resume() {
    return Session::resume(file_, model_, tokenizer_, brief());
  }

  // Saves it with this entry in place of the chat.
  void rewrite(const std::string& entry, const std::string& text) {
    auto [cache, metadata] = load_prompt_cache(file_);
    metadata[entry] = text;
    save_prompt_cache(file_, cache, metadata);
  }

  std::string file_ = (folder_ / "chat.safetensors").string();
};

TEST_F(SessionFiles, AnotherModelsIsRefused) {
  auto other = std::make_shared<ToyModel>(ToyOptions{.seed = 9});
  expect_error(ErrorKind::argument, "other weights", [&] {
    Session::resume(file_, other, tokenizer_, brief());
  });
}

TEST_F(SessionFiles, APromptCacheHasNoChat) {
  auto [cache, metadata] = load_prompt_cache(file_);
  metadata.erase("mlxlm.session");
  save_prompt_cache(file_, cache, metadata);
  expect_error(ErrorKind::argument, "no chat", [&] { resume(); });
}

TEST_F(SessionFiles, DamagedChatsAreErrors) {
  const char* const kBad[] = {
      "",
      "{",
      "[]",
      R"({"version":2})",
      R"({"version":1})",
      R"({"version":1,"messages":{},"tools":"","pieces":[]})",
      R"({"version":1,"messages":[1],"tools":"","pieces":[]})",
      R"({"version":1,"messages":[{"role":1}],"tools":"","pieces":[]})",
      R"({"version":1,"messages":[],"tools":7,"pieces":[]})",
      R"({"version":1,"messages":[],"tools":"","pieces":[1]})",
      R"({"version":1,"messages":[],"tools":"",
          "pieces":[{"text":"","tokens":9999,"message":-1}]})",
      R"({"version":1,"messages":[],"tools":"",
          "pieces":[{"text":"","tokens":-1,"message":-1}]})",
      R"({"version":1,"messages":[],"tools":"",
          "pieces":[{"text":"","tokens":1e30,"message":-1}]})"};
  for (const char* text : kBad) {
    SCOPED_TRACE(text);
    rewrite("mlxlm.session", text);
    expect_error(ErrorKind::format, "chat", [&] { resume(); });
  }
}

TEST_F(SessionFiles, TokensThatTheLayersHaveNotReadAreRefused) {
  rewrite("mlxlm.tokens", "1,2,3");
  expect_error(ErrorKind::format, "names 3 tokens", [&] { resume(); });
}

TEST_F(SessionFiles, AnUnusedSessionIsSavedToo) {
  Session chat(model_, tokenizer_, brief());
  chat.set_system("Hello");
  chat.save(file_);
  auto again = resume();
  EXPECT_EQ(again.messages(), chat.messages());
  EXPECT_EQ(said(again.respond("One")), said(chat.respond("One")));
}

TEST_F(SessionFiles, TheDraftModelCatchesUp) {
  auto drafted = brief();
  drafted.generate.draft_model =
      std::make_shared<ToyModel>(ToyOptions{.noise = 0.05f});
  auto again = Session::resume(file_, model_, tokenizer_, drafted);
  auto plain = resume();
  EXPECT_EQ(said(again.respond("Two")), said(plain.respond("Two")));
  EXPECT_EQ(again.last_turn().reused_tokens, plain.last_turn().reused_tokens);
  again.save(file_);
  EXPECT_EQ(said(resume().respond("Three")), said(plain.respond("Three")));
}

}  // namespace
}  // namespace mlxlm
