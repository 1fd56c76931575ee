// Chats with recurrent architectures, loaded from files with a tokenizer and a
// chat template: every token is read once.
#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/session.h>

#include "generate/chat_toy.h"
#include "models/random_checkpoint.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kAnswerTokens = 4;
// "<|im_start|>assistant\n", of bytes but the first.
constexpr int kHeaderTokens = 11;

json config_of(const std::string& type) {
  if (type == "mamba2") {
    return {{"model_type", type},
            {"conv_kernel", 4},
            {"head_dim", 16},
            {"hidden_size", 64},
            {"intermediate_size", 128},
            {"layer_norm_epsilon", 1e-5},
            {"n_groups", 2},
            {"num_heads", 8},
            {"num_hidden_layers", 2},
            {"state_size", 16},
            {"tie_word_embeddings", false},
            {"time_step_limit", {0.01, 0.5}},
            {"time_step_rank", 4},
            {"use_bias", true},
            {"use_conv_bias", true},
            {"vocab_size", 260}};
  }
  json config = {{"model_type", type},
                 {"hidden_size", 64},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"max_position_embeddings", 4096},
                 {"rope_theta", 10000.0},
                 {"vocab_size", 260}};
  if (type == "lfm2") {
    config.update({{"layer_types", {"conv", "full_attention", "conv"}},
                   {"num_hidden_layers", 3},
                   {"norm_eps", 1e-5},
                   {"block_auto_adjust_ff_dim", false},
                   {"block_dim", 64},
                   {"block_ff_dim", 128},
                   {"block_ffn_dim_multiplier", 1.0},
                   {"block_multiple_of", 32},
                   {"conv_L_cache", 4},
                   {"conv_bias", true}});
  } else {
    config.update({{"num_hidden_layers", 2},
                   {"head_dim", 32},
                   {"intermediate_size", 96},
                   {"rms_norm_eps", 1e-5},
                   {"full_attention_interval", 2},
                   {"partial_rotary_factor", 0.5},
                   {"linear_conv_kernel_dim", 4},
                   {"linear_key_head_dim", 16},
                   {"linear_value_head_dim", 16},
                   {"linear_num_key_heads", 2},
                   {"linear_num_value_heads", 4},
                   {"decoder_sparse_step", 1},
                   {"mlp_only_layers", json::array()},
                   {"norm_topk_prob", true},
                   {"num_experts", 4},
                   {"num_experts_per_tok", 2},
                   {"moe_intermediate_size", 32},
                   {"shared_expert_intermediate_size", 32},
                   {"tie_word_embeddings", true}});
  }
  return config;
}

class RecurrentSession : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto checkpoint = random_checkpoint(config_of(GetParam()), 5);
    write_text(folder_ / "config.json", checkpoint.config.dump());
    write_text(folder_ / "tokenizer.json", tiny_tokenizer().dump());
    write_text(folder_ / "tokenizer_config.json",
               tiny_tokenizer_config().dump());
    mx::save_safetensors((folder_ / "model.safetensors").string(),
                         checkpoint.weights);
    auto [model, tokenizer] = load(folder_.path().string());
    model_ = std::make_shared<CountingModel>(model);
    tokenizer_ = tokenizer;
  }

  SessionOptions options() const {
    SessionOptions options;
    options.generate.max_tokens = kAnswerTokens;
    options.generate.sampler = letters();
    return options;
  }

  // An answer, which reads what the model is given and nothing else.
  std::string counted(Session& chat, GenerationStream stream) {
    model_->num_tokens = 0;
    auto text = said(std::move(stream));
    EXPECT_EQ(model_->num_tokens,
              chat.last_turn().read_tokens() + kAnswerTokens);
    return text;
  }

  // What the model answers to the chat when it reads all of it.
  std::string cold(const Session& chat) {
    json messages = json::array();
    for (const auto& message : chat.messages()) {
      messages.push_back(
          {{"role", message.role}, {"content", message.content}});
    }
    messages.erase(messages.size() - 1);
    auto prompt = tokenizer_->encode(
        tokenizer_->apply_chat_template(messages.dump()), false);
    return said(
        stream_generate(model_, tokenizer_, prompt, options().generate));
  }

  TemporaryFolder folder_;
  std::shared_ptr<CountingModel> model_;
  TokenizerPtr tokenizer_;
};

INSTANTIATE_TEST_SUITE_P(Types,
                         RecurrentSession,
                         ::testing::Values("mamba2", "lfm2", "qwen3_next"));

TEST_P(RecurrentSession, TwentyTurnsReadOnlyNewTokens) {
  Session chat(model_, tokenizer_, options());
  chat.set_system("Be brief.");
  int held = 0;
  for (int i = 0; i < 20; ++i) {
    const auto text = "Message " + std::to_string(i);
    counted(chat, chat.respond(text));
    const auto& turn = chat.last_turn();
    EXPECT_EQ(turn.reused_tokens, held) << i;
    EXPECT_EQ(turn.reread_tokens, 0) << i;
    if (i > 0) {  // "<|im_end|>\n<|im_start|>user\n" ... "<|im_end|>\n"
      EXPECT_EQ(turn.read_tokens(),
                static_cast<int>(text.size()) + 10 + kHeaderTokens)
          << i;
    }
    held = turn.prompt_tokens + kAnswerTokens;
  }
  EXPECT_EQ(chat.cached_tokens(), held);
  const auto before = chat.messages();
  EXPECT_EQ(before.back().content, cold(chat));

  EXPECT_EQ(counted(chat, chat.regenerate()), before.back().content);
  EXPECT_EQ(chat.messages(), before);
  EXPECT_LE(chat.last_turn().read_tokens(), kHeaderTokens);
}

TEST_P(RecurrentSession, ForksAndFilesReadOnlyNewTokens) {
  Session chat(model_, tokenizer_, options());
  for (const char* text : {"One", "Two, which is longer", "Three"}) {
    said(chat.respond(text));
  }
  const auto file = (folder_ / "chat.safetensors").string();
  chat.save(file);
  auto fork = chat.fork();
  auto resumed = Session::resume(file, model_, tokenizer_, options());
  const int held = chat.cached_tokens();
  std::string answer;
  for (auto* each : {&chat, &fork, &resumed}) {
    const auto again = counted(*each, each->respond("Four"));
    EXPECT_EQ(answer.empty() ? again : answer, again);
    answer = again;
    EXPECT_EQ(each->last_turn().reused_tokens, held);
    EXPECT_EQ(each->last_turn().reread_tokens, 0);
    EXPECT_EQ(answer, cold(*each));
    EXPECT_EQ(counted(*each, each->regenerate()), answer);
    EXPECT_LE(each->last_turn().read_tokens(), kHeaderTokens);
  }
  counted(fork, fork.edit(4, "Other"));
  EXPECT_EQ(fork.messages().back().content, cold(fork));
  counted(chat, chat.respond("Five"));
  EXPECT_EQ(chat.last_turn().reread_tokens, 0);
  EXPECT_EQ(chat.messages().back().content, cold(chat));
}

}  // namespace
}  // namespace mlxlm
