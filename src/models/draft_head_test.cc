// Heads for predicting several tokens: where their weights are, and what they
// compute.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "models/random_checkpoint.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kWidth = 32;
constexpr int kLayers = 2;
constexpr float kEps = 1e-5f;

struct Kind {
  const char* name;
  json changes;        // of the configuration
  json layer_changes;  // of one with the head's layer alone
  DraftHeadNames head;
  bool state_first = false;
  bool nested = false;  // what describes the text model is in text_config
};

void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

json flat_config_of(const Kind& kind) {
  return joined({{"model_type", kind.name},
                 {"hidden_size", kWidth},
                 {"num_hidden_layers", kLayers},
                 {"num_nextn_predict_layers", 1},
                 {"intermediate_size", 64},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", 8},
                 {"vocab_size", 48},
                 {"max_position_embeddings", 512},
                 {"rms_norm_eps", kEps},
                 {"rope_theta", 10000.0},
                 {"tie_word_embeddings", false}},
                kind.changes);
}

json nested(const Kind& kind, json config) {
  return kind.nested ? json{{"model_type", kind.name},
                            {"text_config", std::move(config)}}
                     : config;
}

json config_of(const Kind& kind) { return nested(kind, flat_config_of(kind)); }

json layer_config_of(const Kind& kind) {
  return nested(kind,
                joined(joined(flat_config_of(kind), {{"num_hidden_layers", 1}}),
                       kind.layer_changes));
}

const json kExperts = config_of_experts();
const json kSparse = {{"first_k_dense_replace", 0}};
const json kLatent = {{"q_lora_rank", 16},
                      {"kv_lora_rank", 16},
                      {"qk_nope_head_dim", 8},
                      {"qk_rope_head_dim", 4},
                      {"v_head_dim", 8}};
const json kIndex = {
    {"index_n_heads", 2}, {"index_head_dim", 8}, {"index_topk", 4}};
const json kMimoV2 = {{"layernorm_epsilon", kEps},
                      {"hybrid_layer_pattern", {0, 1}},
                      {"moe_layer_freq", {0, 1}},
                      {"partial_rotary_factor", 0.5},
                      {"swa_head_dim", 8},
                      {"swa_v_head_dim", 8},
                      {"v_head_dim", 8},
                      {"swa_num_attention_heads", 4},
                      {"swa_num_key_value_heads", 2},
                      {"swa_rope_theta", 10000.0},
                      {"sliding_window_size", 6},
                      {"add_swa_attention_sink_bias", true},
                      {"add_full_attention_sink_bias", false}};
const json kExaone = {{"num_experts", 4},
                      {"num_shared_experts", 1},
                      {"layer_types", {"sliding_attention", "full_attention"}},
                      {"mtp_layer_types", {"sliding_attention"}},
                      {"sliding_window", 6},
                      {"is_moe_layer", {false, true}}};

DraftHeadNames mimo_v2_names() {
  const std::string layer = "model.mtp.layers.0.";
  return {layer,
          layer + "enorm",
          layer + "hnorm",
          layer + "eh_proj",
          layer + "final_layernorm",
          "pre_mlp_layernorm"};
}

const json kHybrid = config_of_hybrid();
const json kAttentionAlone = {{"full_attention_interval", 1}};

std::vector<Kind> kinds() {
  const auto beside = draft_head_beside_layer(kLayers);
  const auto beside_nested =
      draft_head_beside_layer(kLayers, "language_model.model.layers.");
  const auto latent = joined(kExperts, kLatent);
  return {
      {"deepseek_v3", latent, kSparse, beside},
      {"deepseek_v32", joined(latent, kIndex), kSparse, beside},
      {"glm4_moe",
       joined(kExperts,
              {{"partial_rotary_factor", 0.5}, {"use_qk_norm", true}}),
       kSparse,
       beside},
      {"glm4_moe_lite", latent, kSparse, beside},
      {"mimo", json::object(), json::object(), draft_head_of_mimo(), true},
      {"mimo_v2_flash",
       joined(kExperts, kMimoV2),
       {{"hybrid_layer_pattern", {1}}, {"moe_layer_freq", {0}}},
       mimo_v2_names()},
      {"exaone_moe",
       joined(kExperts, kExaone),
       {{"layer_types", {"sliding_attention"}}, {"is_moe_layer", {false}}},
       draft_head_apart()},
      {"kimi_k25", latent, kSparse, beside_nested, false, true},
      {"kimi_vl", latent, kSparse, beside_nested, false, true},
      {"qwen3_next", kHybrid, kAttentionAlone, draft_head_apart()},
      {"qwen3_5_moe", kHybrid, kAttentionAlone, draft_head_apart()},
      {"qwen3_5", kHybrid, kAttentionAlone, draft_head_apart(), false, true}};
}

class DraftHeads : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    checkpoint_ = random_checkpoint(config_of(GetParam()), 1);
    layer_ = random_checkpoint(layer_config_of(GetParam()), 2);
    add_draft_head(checkpoint_, layer_, GetParam().head);
  }

  mx::array weight(const std::string& name) const {
    return text_weight(checkpoint_, name + ".weight");
  }

  Checkpoint checkpoint_;
  Checkpoint layer_;
};

INSTANTIATE_TEST_SUITE_P(Families,
                         DraftHeads,
                         ::testing::ValuesIn(kinds()),
                         [](const auto& info) {
                           return std::string(info.param.name);
                         });

void expect_close(const mx::array& a, const mx::array& b, float tolerance) {
  ASSERT_EQ(a.shape(), b.shape());
  EXPECT_LT(mx::max(mx::abs(mx::subtract(a, b))).item<float>(), tolerance);
}

mx::array part(const mx::array& x, int first, int end) {
  return mx::slice(x, {0, first, 0}, {1, end, x.shape(2)});
}

// Norms, projection and order of the inputs in plain arrays; the layer as that
// of a model which has no other.
TEST_P(DraftHeads, ComputeWhatTheFormulaSays) {
  auto model = make_model(checkpoint_, {.draft_head = true});
  const mx::array tokens({5, 17, 3, 3, 40, 8, 29, 1, 11}, {1, 9}, mx::int32);
  auto [logits, states] = model->forward_with_states(tokens, {});
  expect_close(logits, model->forward(tokens), 1e-5f);
  auto before =
      mx::concatenate({mx::zeros({1, 1, kWidth}), part(states, 0, 8)}, 1);

  auto norm = [&](const mx::array& x, const std::string& name) {
    auto mean = mx::mean(mx::square(x), -1, true);
    return mx::multiply(
        mx::multiply(x, mx::rsqrt(mx::add(mean, mx::array(kEps)))),
        weight(name));
  };
  const auto& names = GetParam().head;
  auto token =
      norm(mx::take(weight("model.embed_tokens"), tokens, 0), names.token_norm);
  auto state = norm(before, names.state_norm);
  if (GetParam().state_first) std::swap(token, state);
  auto input = mx::matmul(mx::concatenate({token, state}, -1),
                          mx::transpose(weight(names.projection)));
  layer_.weights.insert_or_assign("lm_head.weight", weight("lm_head"));
  auto expected = make_model(layer_)->forward(tokens, {}, input);

  auto& head = *model->draft_head();
  expect_close(head.logits(head.forward(tokens, before, {})), expected, 2e-4f);
  // In two parts, with a cache.
  auto cache = head.make_cache();
  auto take = [&](int first, int end) {
    return head.logits(head.forward(mx::slice(tokens, {0, first}, {1, end}),
                                    part(before, first, end),
                                    cache));
  };
  auto first = take(0, 4);
  expect_close(mx::concatenate({first, take(4, 9)}, 1), expected, 2e-4f);
  EXPECT_EQ(prompt_cache_offset(cache), 9);
}

TEST_P(DraftHeads, AreLoadedOnlyWhenAskedFor) {
  auto plain = make_model(checkpoint_);
  EXPECT_EQ(plain->draft_head(), nullptr);
  auto model = make_model(checkpoint_, {.draft_head = true});
  EXPECT_EQ(model->num_layers(), kLayers);
  EXPECT_EQ(model->make_cache().size(), std::size_t{kLayers});
  auto names_of = [](const Model& one) {
    std::vector<std::string> names;
    for (const auto& parameter : one.parameters()) {
      names.push_back(parameter.name);
    }
    return names;
  };
  EXPECT_EQ(names_of(*model), names_of(*plain));
  EXPECT_EQ(model->config(), plain->config());
}

TEST_P(DraftHeads, WhatIsMissingIsNamed) {
  auto part = checkpoint_;
  part.weights.erase(GetParam().head.layer + "self_attn.o_proj.weight");
  expect_error(ErrorKind::weights,
               "model.layers.2.self_attn.o_proj.weight: is missing",
               [&] { make_model(part, {.draft_head = true}); });
  // As it is within the text model.
  auto layer = GetParam().head.layer;
  if (layer.starts_with("language_model.")) layer.erase(0, 15);
  auto without = random_checkpoint(config_of(GetParam()), 1);
  expect_error(ErrorKind::weights, layer + "*, are missing", [&] {
    make_model(without, {.draft_head = true});
  });
  auto none = checkpoint_;
  auto& config = GetParam().nested ? none.config["text_config"] : none.config;
  config["num_nextn_predict_layers"] = 0;
  expect_error(ErrorKind::unsupported, "num_nextn_predict_layers is 0", [&] {
    make_model(none, {.draft_head = true});
  });
}

TEST(DraftHead, OtherModelTypesHaveNone) {
  const Kind llama{.name = "llama", .changes = json::object()};
  auto checkpoint = random_checkpoint(config_of(llama), 1);
  for (const char* part :
       {"model type \"llama\" has no draft head", "deepseek_v3", "mimo"}) {
    expect_error(ErrorKind::unsupported, part, [&] {
      make_model(checkpoint, {.draft_head = true});
    });
  }
}

}  // namespace
}  // namespace mlxlm
