// Random models of real kinds of layers, most with a draft head, and smaller
// ones that are often right, for the tests of speculation.
#pragma once

#include <utility>
#include <vector>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>
#include <mlxlm/model.h>

#include "models/random_checkpoint.h"

namespace mlxlm::draft_kinds {

using nlohmann::json;

inline constexpr int kWidth = 64;
inline constexpr int kVocabulary = 50;
inline constexpr int kGroup = 32;  // of quantized keys and values

struct Kind {
  const char* type;
  json changes = json::object();        // of the configuration
  json layer_changes = json::object();  // of one with a head's layer alone
  DraftHeadNames head = {};             // layer "": it has none
};

inline const json kExperts = config_of_experts();
// Latent attention.
inline Kind deepseek_v3() {
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
inline Kind deepseek_v32() {
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
inline Kind exaone_moe() {
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
inline Kind hybrid(const char* type) {
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

inline Kind glm4_moe() {
  return {"glm4_moe",
          kExperts,
          {{"first_k_dense_replace", 0}},
          draft_head_beside_layer(2)};
}

inline Kind mimo() { return {.type = "mimo", .head = draft_head_of_mimo()}; }

// Chunks of attention.
inline Kind llama4() {
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

inline json config_of(const Kind& kind) {
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
inline void damp(Checkpoint& checkpoint, float scale) {
  for (auto& [name, value] : checkpoint.weights) {
    for (const char* part : {"o_proj", "down_proj", "out_proj"}) {
      if (name.find(part) != std::string::npos) {
        value = mx::multiply(value, mx::array(scale));
      }
    }
  }
}

// The head goes on from the newest token alone.
inline void take_tokens_only(Checkpoint& checkpoint,
                             const DraftHeadNames& head) {
  const auto one = mx::eye(kWidth);
  const auto none = mx::zeros({kWidth, kWidth});
  const bool state_first = head.layer == draft_head_of_mimo().layer;
  checkpoint.weights.insert_or_assign(
      head.projection + ".weight",
      mx::concatenate({state_first ? none : one, state_first ? one : none}, 1));
}

inline ModelPtr make_random(const Kind& kind) {
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
inline ModelPtr make_near(const Kind& kind) {
  auto checkpoint = random_checkpoint(config_of(kind), 3);
  damp(checkpoint, 0.3f);
  return make_model(checkpoint);
}

// How its caches are stored.
struct Cell {
  const char* name;
  int max_kv_size = 0;
  int bits = 0;  // of keys and values; 0: float
  int quantized_start = 0;
  int chunk_tokens = 2048;
};

inline GenerateOptions options_of(const Cell& cell, int max_tokens) {
  GenerateOptions options{.max_tokens = max_tokens,
                          .max_kv_size = cell.max_kv_size,
                          .prefill_step_tokens = cell.chunk_tokens,
                          .kv_group_size = kGroup,
                          .quantized_kv_start = cell.quantized_start};
  if (cell.bits > 0) options.kv_bits = cell.bits;
  return options;
}

inline std::vector<std::pair<Kind, Cell>> cells() {
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

}  // namespace mlxlm::draft_kinds
