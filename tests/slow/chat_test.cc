// A long chat with a real model whose layers see a window of 512 tokens.
#include <filesystem>

#include <gtest/gtest.h>

#include <mlxlm/session.h>

#include "load/resolve.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

constexpr char kTemplate[] =
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}";
constexpr int kAnswerTokens = 2;

std::string said(GenerationStream stream) {
  std::string text;
  for (const auto& part : stream) {
    text += part.text;
  }
  return text;
}

TEST(RealChat, TwentyTurnsBeyondTheWindowReadOnlyNewTokens) {
  auto file = default_models_folder() / "gemma-3-270m-q4_k_m.gguf";
  if (!std::filesystem::exists(file)) {
    GTEST_SKIP() << file << " is not there; ./test fetches it";
  }
  auto [model, tokenizer] = load(file.string());
  tokenizer->set_chat_template(kTemplate);
  SessionOptions options;
  options.generate.max_tokens = kAnswerTokens;
  options.generate.ignore_eos = true;
  Session chat(model, tokenizer, options);
  std::string text = "Remember the numbers";
  for (int i = 0; i < 80; ++i) {
    text += " " + std::to_string(i % 10) + ",";
  }
  int held = 0;
  for (int i = 0; i < 20; ++i) {
    said(chat.respond(text));
    const auto& turn = chat.last_turn();
    EXPECT_EQ(turn.reused_tokens, held) << i;
    EXPECT_EQ(turn.reread_tokens, 0) << i;
    if (i > 0) {
      EXPECT_LT(turn.read_tokens(), 20) << i;
    }
    held = turn.prompt_tokens + turn.generated_tokens;
    text = "And number " + std::to_string(i) + "?";
  }
  EXPECT_GT(held, 512);
  EXPECT_EQ(chat.total().read_tokens() + chat.total().generated_tokens, held);

  auto before = chat.messages();
  EXPECT_EQ(said(chat.regenerate()), before.back().content);
  EXPECT_LT(chat.last_turn().read_tokens(), 6);
  EXPECT_EQ(chat.messages(), before);

  // What it answers now is what it answers to the same tokens read at once.
  TemporaryFolder folder;
  std::string saved = (folder / "chat.safetensors").string();
  chat.save(saved);
  auto tokens = *origin_in(load_prompt_cache(saved).second)->tokens;
  std::vector<int> answer(tokens.end() - kAnswerTokens, tokens.end());
  tokens.resize(tokens.size() - kAnswerTokens);
  std::vector<int> cold;
  for (const auto& part :
       stream_generate(model, tokenizer, tokens, options.generate)) {
    cold.push_back(part.token);
  }
  EXPECT_EQ(cold, answer);
}

}  // namespace
}  // namespace mlxlm
