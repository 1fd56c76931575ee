// Speculation with a draft head on random models of real kinds: 500 tokens as
// without, for several kinds of caches, and again from saved ones.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "models/random_checkpoint.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kTokens = 500;

struct Cell {
  const char* name;
  int max_kv_size = 0;
  std::optional<int> bits;
  int chunk_tokens = 2048;
};

// Random heads, which are hardly ever right, of several kinds of layers.
class HeadDrafterGrid
    : public ::testing::TestWithParam<std::tuple<const char*, Cell>> {};

INSTANTIATE_TEST_SUITE_P(
    Cells,
    HeadDrafterGrid,
    ::testing::Combine(::testing::Values("deepseek_v3", "glm4_moe", "mimo"),
                       ::testing::Values(Cell{"Growing"},
                                         Cell{"Rotating", 12},
                                         Cell{"EightBits", 0, 8},
                                         Cell{"Chunks", 0, {}, 3})),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) +
             std::get<1>(info.param).name;
    });

ModelPtr random_model(const std::string& type) {
  json config = {{"model_type", type},
                 {"hidden_size", 64},
                 {"num_hidden_layers", 2},
                 {"intermediate_size", 48},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 1},
                 {"head_dim", 32},
                 {"q_lora_rank", 16},
                 {"kv_lora_rank", 32},
                 {"qk_nope_head_dim", 16},
                 {"qk_rope_head_dim", 32},
                 {"v_head_dim", 16},
                 {"vocab_size", 50},
                 {"max_position_embeddings", 2048},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"partial_rotary_factor", 0.5},
                 {"n_routed_experts", 4},
                 {"n_shared_experts", 1},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 16},
                 {"first_k_dense_replace", 1},
                 {"n_group", 1},
                 {"topk_group", 1},
                 {"norm_topk_prob", true},
                 {"routed_scaling_factor", 1.5},
                 {"tie_word_embeddings", false}};
  auto checkpoint = random_checkpoint(config, 3);
  config["num_hidden_layers"] = 1;
  config["first_k_dense_replace"] = 0;
  add_draft_head(
      checkpoint,
      random_checkpoint(config, 4),
      type == "mimo" ? draft_head_of_mimo() : draft_head_beside_layer(2));
  return make_model(checkpoint, {.draft_head = true});
}

std::vector<int> with_head(const ModelPtr& model,
                           const std::vector<int>& prompt,
                           GenerateOptions options) {
  options.draft = DraftKind::mtp;
  auto generator = speculative_generate_step(prompt, model, nullptr, options);
  std::vector<int> tokens;
  while (auto step = generator->next()) tokens.push_back(step->token);
  return tokens;
}

TEST_P(HeadDrafterGrid, GivesTheSameTokens) {
  const auto& [type, cell] = GetParam();
  auto model = random_model(type);
  GenerateOptions options{.max_tokens = kTokens,
                          .max_kv_size = cell.max_kv_size,
                          .prefill_step_tokens = cell.chunk_tokens};
  options.kv_bits = cell.bits;
  options.kv_group_size = 32;
  options.quantized_kv_start = 0;
  std::vector<int> prompt;
  for (int i = 0; i < 17; ++i) prompt.push_back(i * 7 % 50);
  auto plainly = [&](const std::vector<int>& tokens) {
    std::vector<int> drawn;
    auto generator = generate_step(tokens, model, options);
    while (auto step = generator->next()) drawn.push_back(step->token);
    return drawn;
  };
  PromptCache plain_cache;
  options.prompt_cache = &plain_cache;
  const auto plain = plainly(prompt);
  const auto plain_after = plainly({3, 4, 5});
  for (std::optional<int> num_drafts :
       {std::optional(1), std::optional(3), {}}) {
    PromptCache cache;
    options.prompt_cache = &cache;
    options.num_draft_tokens = num_drafts;
    EXPECT_EQ(with_head(model, prompt, options), plain);
    TemporaryFolder folder;
    save_prompt_cache(folder / "cache.safetensors", cache);
    auto saved = load_prompt_cache(folder / "cache.safetensors").first;
    options.prompt_cache = &saved;
    EXPECT_EQ(with_head(model, {3, 4, 5}, options), plain_after);
    EXPECT_EQ(saved.size(), plain_cache.size() + 1);
    EXPECT_EQ(saved.back()->offset(), plain_cache.back()->offset());
  }
}

}  // namespace
}  // namespace mlxlm
