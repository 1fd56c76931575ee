// Speculation on random models of real kinds of layers: 500 tokens as without,
// and more from the saved cache.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "models/random_checkpoint.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kTokens = 500;
constexpr int kTokensAfter = 150;
constexpr int kWidth = 64;
constexpr int kVocabulary = 50;
constexpr int kGroup = 32;  // of quantized keys and values

struct Kind {
  const char* type;
  json changes = json::object();        // of the configuration
  json layer_changes = json::object();  // of one with a head's layer alone
  DraftHeadNames head = {};             // layer "": it has none
};

const json kExperts = config_of_experts();
// Latent attention.
Kind deepseek_v3() {
  return {"deepseek_v3",
          joined(kExperts,
                 {{"q_lora_rank", 16},
                  {"kv_lora_rank", 32},
                  {"qk_nope_head_dim", 16},
                  {"qk_rope_head_dim", 32},
                  {"v_head_dim", 16},
                  {"first_k_dense_replace", 3}}),
          json::object(),
          draft_head_beside_layer(2)};
}

// Lists of two caches for each layer.
Kind deepseek_v32() {
  auto kind = deepseek_v3();
  kind.type = "deepseek_v32";
  kind.changes.update({{"num_hidden_layers", 1},
                       {"index_n_heads", 2},
                       {"index_head_dim", 32},
                       {"index_topk", 16}});
  kind.head = draft_head_beside_layer(1);
  return kind;
}

// Sliding windows.
Kind exaone_moe() {
  return {"exaone_moe",
          joined(kExperts,
                 {{"num_experts", 4},
                  {"num_shared_experts", 1},
                  {"layer_types", {"sliding_attention", "full_attention"}},
                  {"mtp_layer_types", {"sliding_attention"}},
                  {"sliding_window", 12},
                  {"is_moe_layer", {false, true}}}),
          {{"layer_types", {"sliding_attention"}}, {"is_moe_layer", {false}}},
          draft_head_apart()};
}

// Gated delta networks among layers of attention.
Kind hybrid(const char* type) {
  return {type,
          {{"num_experts", 4},
           {"num_experts_per_tok", 2},
           {"decoder_sparse_step", 1},
           {"moe_intermediate_size", 16},
           {"shared_expert_intermediate_size", 16},
           {"mlp_only_layers", json::array()},
           {"norm_topk_prob", true},
           {"full_attention_interval", 2},
           {"linear_num_value_heads", 4},
           {"linear_num_key_heads", 2},
           {"linear_key_head_dim", 8},
           {"linear_value_head_dim", 8},
           {"linear_conv_kernel_dim", 3}},
          {{"full_attention_interval", 1}},
          draft_head_apart()};
}

Kind glm4_moe() {
  return {"glm4_moe",
          kExperts,
          {{"first_k_dense_replace", 0}},
          draft_head_beside_layer(2)};
}

Kind mimo() { return {.type = "mimo", .head = draft_head_of_mimo()}; }

// Chunks of attention.
Kind llama4() {
  json text = {{"model_type", "llama4_text"},
               {"hidden_size", kWidth},
               {"num_hidden_layers", 2},
               {"intermediate_size", 48},
               {"intermediate_size_mlp", 48},
               {"num_attention_heads", 2},
               {"num_key_value_heads", 1},
               {"head_dim", 32},
               {"vocab_size", kVocabulary},
               {"max_position_embeddings", 2048},
               {"rms_norm_eps", 1e-5},
               {"rope_theta", 10000.0},
               {"attention_bias", false},
               {"use_qk_norm", true},
               {"attention_chunk_size", 16},
               {"num_local_experts", 2},
               {"num_experts_per_tok", 1},
               {"interleave_moe_layer_step", 2}};
  return {.type = "llama4", .changes = {{"text_config", std::move(text)}}};
}

json config_of(const Kind& kind) {
  return joined({{"model_type", kind.type},
                 {"hidden_size", kWidth},
                 {"num_hidden_layers", 2},
                 {"intermediate_size", 48},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 1},
                 {"head_dim", 32},
                 {"vocab_size", kVocabulary},
                 {"max_position_embeddings", 2048},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"partial_rotary_factor", 0.5},
                 {"tie_word_embeddings", false}},
                kind.changes);
}

// What layers add to their input, smaller by this: then the next token depends
// on the newest above all, and drafts are often right.
void damp(Checkpoint& checkpoint, float scale) {
  for (auto& [name, value] : checkpoint.weights) {
    for (const char* part : {"o_proj", "down_proj", "out_proj"}) {
      if (name.find(part) != std::string::npos) {
        value = mx::multiply(value, mx::array(scale));
      }
    }
  }
}

// The head goes on from the newest token alone.
void take_tokens_only(Checkpoint& checkpoint, const DraftHeadNames& head) {
  const auto one = mx::eye(kWidth);
  const auto none = mx::zeros({kWidth, kWidth});
  const bool state_first = head.layer == draft_head_of_mimo().layer;
  checkpoint.weights.insert_or_assign(
      head.projection + ".weight",
      mx::concatenate({state_first ? none : one, state_first ? one : none}, 1));
}

ModelPtr make_random(const Kind& kind) {
  const bool has_head = !kind.head.layer.empty();
  auto checkpoint = random_checkpoint(config_of(kind), 3);
  if (has_head) {
    auto layer = joined(config_of(kind), {{"num_hidden_layers", 1}});
    layer.update(kind.layer_changes);
    add_draft_head(checkpoint, random_checkpoint(layer, 4), kind.head);
    take_tokens_only(checkpoint, kind.head);
  }
  damp(checkpoint, 0.5f);
  return make_model(checkpoint, {.draft_head = has_head});
}

// A smaller one of another kind, which is often right.
ModelPtr make_near(const Kind& kind) {
  auto checkpoint = random_checkpoint(config_of(kind), 3);
  damp(checkpoint, 0.3f);
  return make_model(checkpoint);
}

struct Cell {
  const char* name;
  int max_kv_size = 0;
  int bits = 0;  // of keys and values; 0: float
  int quantized_start = 0;
  int chunk_tokens = 2048;
};

struct Run {
  std::vector<int> tokens;
  int accepted = 0;
  int drafted = 0;
};

Run run(TokenGenerator& generator) {
  Run run;
  while (auto step = generator.next()) run.tokens.push_back(step->token);
  if (const auto* speculation = generator.speculation()) {
    run.accepted = speculation->accepted_tokens;
    run.drafted = speculation->drafted_tokens;
  }
  return run;
}

class SpeculationOfModels
    : public ::testing::TestWithParam<std::pair<Kind, Cell>> {
 protected:
  void SetUp() override {
    const auto& [kind, cell] = GetParam();
    model_ = make_random(kind);
    near_ = make_near(kind);
    options_ = {.max_tokens = kTokens,
                .max_kv_size = cell.max_kv_size,
                .prefill_step_tokens = cell.chunk_tokens,
                .kv_group_size = kGroup,
                .quantized_kv_start = cell.quantized_start};
    if (cell.bits > 0) options_.kv_bits = cell.bits;
    for (int i = 0; i < 17; ++i) prompt_.push_back(i * 7 % kVocabulary);
    options_.prompt_cache = &plain_cache_;
    plain_ = run(*generate_step(prompt_, model_, options_)).tokens;
    options_.max_tokens = kTokensAfter;
    plain_after_ = run(*generate_step(kTurn, model_, options_)).tokens;
  }

  // The first run takes so many drafts each time; the other, from the saved
  // cache, as many as pay.
  void compare(const ModelPtr& draft, DraftKind kind, int num_drafts) {
    PromptCache cache;
    auto options = options_;
    options.draft = kind;
    options.prompt_cache = &cache;
    options.max_tokens = kTokens;
    options.num_draft_tokens = num_drafts;
    auto first =
        run(*speculative_generate_step(prompt_, model_, draft, options));
    EXPECT_EQ(first.tokens, plain_);
    EXPECT_GT(first.accepted, 0);
    EXPECT_LT(first.accepted, first.drafted);
    TemporaryFolder folder;
    save_prompt_cache(folder / "cache.safetensors", cache);
    cache = load_prompt_cache(folder / "cache.safetensors").first;
    options.num_draft_tokens.reset();
    options.max_tokens = kTokensAfter;
    EXPECT_EQ(
        run(*speculative_generate_step(kTurn, model_, draft, options)).tokens,
        plain_after_);
    for (std::size_t i = 0; i < plain_cache_.size(); ++i) {
      EXPECT_EQ(cache[i]->offset(), plain_cache_[i]->offset());
      EXPECT_EQ(cache[i]->kind(), plain_cache_[i]->kind());
    }
  }

  const std::vector<int> kTurn{3, 4, 5};
  std::vector<int> prompt_;
  ModelPtr model_;
  ModelPtr near_;
  GenerateOptions options_;
  PromptCache plain_cache_;
  std::vector<int> plain_, plain_after_;
};

std::vector<std::pair<Kind, Cell>> cells() {
  const Cell plain{"Float"};
  const Cell eight_bits{"EightBits", 0, 8, 0, 5};
  const Cell four_bits_later{"FourBitsLater", 0, 4, 99, 3};
  std::vector<std::pair<Kind, Cell>> all;
  for (const auto& kind : {Kind{"llama"},
                           deepseek_v3(),
                           exaone_moe(),
                           hybrid("qwen3_next"),
                           llama4(),
                           mimo()}) {
    for (const auto& cell : {plain, eight_bits, four_bits_later}) {
      all.emplace_back(kind, cell);
    }
  }
  // The limit is for those that don't choose their caches themselves.
  for (const auto& cell : {Cell{"Rotating", 24},
                           Cell{"RotatingEightBits", 24, 8},
                           Cell{"RotatingInChunks", 24, 0, 0, 5}}) {
    all.emplace_back(mimo(), cell);
  }
  all.emplace_back(deepseek_v3(), Cell{"Rotating", 24});
  for (const auto& kind : {deepseek_v32(), glm4_moe(), hybrid("qwen3_5_moe")}) {
    all.emplace_back(kind, plain);
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Cells,
                         SpeculationOfModels,
                         ::testing::ValuesIn(cells()),
                         [](const auto& info) {
                           return std::string(info.param.first.type) +
                                  info.param.second.name;
                         });

TEST_P(SpeculationOfModels, GivesTheSameTokens) {
  compare(nullptr, DraftKind::ngram, 5);
  compare(near_, DraftKind::model, 4);
  if (model_->draft_head() != nullptr) {
    compare(nullptr, DraftKind::mtp, 3);
  }
}

}  // namespace
}  // namespace mlxlm
