// Sessions that share a prefix store.
#include <gtest/gtest.h>

#include <mlxlm/session.h>

#include "generate/chat_toy.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

struct Kind {
  const char* name;
  int window_tokens = 0;
  bool recurrent = false;
  bool drafts = false;
  std::optional<int> kv_bits;
};

constexpr char kSystem[] = "Answer in one sentence, and be kind to everybody.";
// "[system]" before it, "|" after it.
constexpr int kSystemTokens = sizeof(kSystem) - 1 + 9;

class SessionPrefix : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    const auto& kind = GetParam();
    ToyOptions toy{.window_tokens = kind.window_tokens, .context_tokens = 4096};
    auto model = kind.recurrent
                     ? ModelPtr(std::make_shared<RecurrentToy>(true, toy))
                     : ModelPtr(std::make_shared<ToyModel>(toy));
    model_ = std::make_shared<CountingModel>(model);
    if (kind.drafts) {
      draft_ = std::make_shared<ToyModel>(
          ToyOptions{.context_tokens = 4096, .noise = 0.1f});
    }
  }

  SessionOptions options() const {
    SessionOptions options;
    options.generate.max_tokens = 6;
    options.generate.sampler = letters();
    options.generate.prefix_store = store_;
    options.generate.draft_model = draft_;
    options.generate.kv_bits = GetParam().kv_bits;
    options.generate.kv_group_size = 32;
    options.generate.quantized_kv_start = 0;
    return options;
  }

  Session session(const SessionOptions& options) const {
    Session session(model_, tokenizer_, options);
    session.set_system(kSystem);
    return session;
  }

  // Answers, and checks that the model read what is said.
  std::string counted(Session& chat, const std::string& text) {
    model_->num_tokens = 0;
    auto answer = said(chat.respond(text));
    const auto& turn = chat.last_turn();
    if (!draft_) {
      EXPECT_EQ(model_->num_tokens, turn.read_tokens() + turn.generated_tokens);
    }
    return answer;
  }

  std::string alone(const std::string& text) {
    auto plain = options();
    plain.generate.prefix_store.reset();
    auto chat = session(plain);
    return said(chat.respond(text));
  }

  std::shared_ptr<PrefixStore> store_ = std::make_shared<PrefixStore>();
  std::shared_ptr<CountingModel> model_;
  ModelPtr draft_;
  std::shared_ptr<ChatToyTokenizer> tokenizer_ =
      std::make_shared<ChatToyTokenizer>();
};

INSTANTIATE_TEST_SUITE_P(
    Kinds,
    SessionPrefix,
    ::testing::Values(Kind{"Growing"},
                      Kind{"Window", 24},
                      Kind{"Hybrid", 24, true},
                      Kind{"Drafts", 0, false, true},
                      Kind{"DraftsWindow", 24, false, true},
                      Kind{"Quantized", 0, false, false, 8}),
    [](const auto& info) { return info.param.name; });

TEST_P(SessionPrefix, ASystemMessageIsReadOnce) {
  auto one = session(options());
  auto two = session(options());
  EXPECT_EQ(counted(one, "What is a river?"), alone("What is a river?"));
  EXPECT_EQ(one.last_turn().reused_tokens, 0);
  auto answer = counted(two, "And a hill?");
  EXPECT_GE(two.last_turn().reused_tokens, kSystemTokens);
  EXPECT_EQ(two.last_turn().reread_tokens, 0);
  if (!GetParam().kv_bits) {
    EXPECT_EQ(answer, alone("And a hill?"));
  }
  // From there on each goes its own way.
  for (auto* each : {&one, &two}) {
    const int held = each->cached_tokens();
    counted(*each, "Next");
    EXPECT_EQ(each->last_turn().reused_tokens, held);
  }
}

TEST_P(SessionPrefix, AWholeChatIsFoundAgain) {
  auto one = session(options());
  counted(one, "What is a river?");
  counted(one, "What is a longer river than that?");
  auto two = session(options());
  for (const auto& message : one.messages()) {
    if (message.role != "system") two.add(message);
  }
  counted(two, "More");
  EXPECT_EQ(two.last_turn().reused_tokens, one.cached_tokens());
}

// A session that keeps no checkpoints of its own finds those in the store.
TEST_P(SessionPrefix, ItGoesBackToWhatIsStored) {
  auto bounded = options();
  bounded.checkpoint_bytes = 0;
  auto chat = session(bounded);
  for (const char* text : {"One", "Two", "Three", "Four"}) {
    counted(chat, text);
  }
  said(chat.edit(5, "Five, which is longer"));
  EXPECT_LE(chat.last_turn().reread_tokens, 8);
}

TEST_P(SessionPrefix, NothingIsSharedBetweenTenantsAndOptions) {
  auto one = session(options());
  said(one.respond("What is a river?"));
  auto other = options();
  other.generate.prefix_tenant = "bob";
  auto two = session(other);
  said(two.respond("What is a river?"));
  EXPECT_EQ(two.last_turn().reused_tokens, 0);
  auto limited = options();
  limited.generate.max_kv_size = 200;
  auto three = session(limited);
  said(three.respond("What is a river?"));
  EXPECT_EQ(three.last_turn().reused_tokens, 0);
  limited.when_full = FullContext::rotate;
  auto four = session(limited);
  said(four.respond("What is a river?"));
  EXPECT_EQ(four.last_turn().reused_tokens, 0);
}

}  // namespace
}  // namespace mlxlm
