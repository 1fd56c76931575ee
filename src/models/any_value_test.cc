// Every field of every family, set to what it can't be.
#include <algorithm>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "models/family.h"
#include "models/model_fault.h"
#include "tests/support/model_writer.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// Fields that some families need, under the names that they have there.
const json kFieldsOfSome = {
    {"head_dim", 16},
    {"layer_norm_eps", 1e-5},
    {"layer_norm_epsilon", 1e-5},
    {"norm_eps", 1e-5},
    {"partial_rotary_factor", 0.5},
    {"sliding_window", 8},
    {"attention_bias", false},
    {"mlp_bias", false},
    {"use_bias", false},
    {"use_qkv_bias", false},
    {"logits_scaling", 2.0},
    {"attention_multiplier", 0.25},
    {"embedding_multiplier", 3.0},
    {"residual_multiplier", 0.5},
    {"num_experts", 4},
    {"num_local_experts", 4},
    {"num_experts_per_tok", 2},
    {"moe_intermediate_size", 32},
    {"shared_expert_intermediate_size", 32},
    {"decoder_sparse_step", 1},
    {"mlp_only_layers", json::array()},
    {"norm_topk_prob", true},
    {"dim_model_base", 32},
    {"scale_depth", 1.4},
    {"scale_emb", 2.0},
    {"n_shared_head", 2},
    {"num_kv_shared_layers", 0},
    {"vocab_size_per_layer_input", 260},
    {"hidden_size_per_layer_input", 16},
    {"kv_channels", 16},
    {"rope_scaling",
     {{"type", "longrope"},
      {"original_max_position_embeddings", 64},
      {"short_factor", 1.0},
      {"long_factor", 1.5},
      {"factor", 1.0},
      {"alpha", 2.0}}},
    {"rope_parameters",
     {{"rope_theta", 1e4},
      {"llama_4_scaling_beta", 0.1},
      {"original_max_position_embeddings", 64}}},
    // exaone, gpt2, gpt_bigcode, gpt_neox, gptj, lille-130m
    {"num_layers", 2},
    {"n_embd", 64},
    {"n_head", 4},
    {"n_kv_heads", 2},
    {"n_layer", 2},
    {"n_inner", 128},
    {"n_positions", 64},
    {"block_size", 64},
    {"rotary_dim", 8},
    {"rotary_emb_base", 10000},
    {"rotary_pct", 0.5},
    // lfm2
    {"conv_bias", false},
    {"conv_L_cache", 3},
    {"block_dim", 64},
    {"block_multiple_of", 32},
    {"block_auto_adjust_ff_dim", true},
    {"full_attn_idxs", {1}},
    // mamba, mamba2, rwkv7
    {"state_size", 8},
    {"conv_kernel", 4},
    {"use_conv_bias", true},
    {"num_heads", 4},
    {"n_groups", 1},
    {"a_low_rank_dim", 8},
    {"v_low_rank_dim", 8},
    {"gate_low_rank_dim", 8},
    {"decay_low_rank_dim", 8},
    // recurrent_gemma, baichuan_m1
    {"logits_soft_cap", 30.0},
    {"attention_window_size", 8},
    {"conv1d_width", 4},
    {"block_types", {"recurrent", "attention"}},
    {"conv_window", 2},
    {"sliding_window_layers", {1}},
    // gated delta networks
    {"linear_num_value_heads", 4},
    {"linear_num_key_heads", 2},
    {"linear_key_head_dim", 16},
    {"linear_value_head_dim", 16},
    {"linear_conv_kernel_dim", 4},
    {"linear_allow_neg_eigval", true},
    // lfm2_moe, granitemoehybrid, nemotron_h, jamba
    {"use_expert_bias", true},
    {"num_dense_layers", 0},
    {"mamba_proj_bias", false},
    {"mamba_conv_bias", true},
    {"mamba_d_state", 8},
    {"mamba_d_conv", 4},
    {"mamba_num_heads", 4},
    {"mamba_head_dim", 16},
    {"ssm_state_size", 8},
    {"moe_shared_expert_intermediate_size", 32},
    {"hybrid_override_pattern", "M*E-"},
    {"attn_layer_period", 2},
    {"attn_layer_offset", 1},
    {"expert_layer_period", 2},
    {"expert_layer_offset", 0},
    {"mamba_expand", 2},
    // kimi_linear, bailing_moe_linear
    {"num_experts_per_token", 2},
    {"model_max_length", 64},
    {"linear_attn_config",
     {{"kda_layers", {1}}, {"num_heads", 2}, {"head_dim", 16}}},
    {"layer_group_size", 2},
    {"group_norm_size", 2},
    // olmo
    {"d_model", 64},
    {"n_layers", 2},
    {"n_heads", 4},
    {"embedding_size", 260},
    // openelm
    {"model_dim", 64},
    {"num_transformer_layers", 2},
    {"num_query_heads", {4, 4}},
    {"num_kv_heads", {2, 2}},
    {"ffn_multipliers", {1.0, 1.5}},
    {"ffn_dim_divisor", 32},
    // experts and latent attention
    {"q_lora_rank", 32},
    {"kv_lora_rank", 32},
    {"qk_nope_head_dim", 16},
    {"qk_rope_head_dim", 16},
    {"v_head_dim", 16},
    {"n_routed_experts", 4},
    {"n_shared_experts", 1},
    {"num_shared_experts", 1},
    {"moe_num_experts", 4},
    {"first_k_dense_replace", 1},
    {"is_moe_layer", {false, true}},
    {"use_qk_norm", true},
    {"num_attention_groups", 2},
    {"intermediate_size_mlp", 96},
    {"attention_chunk_size", 8},
    {"interleave_moe_layer_step", 1},
    {"no_rope_layers", {1, 0}},
    {"attn_config",
     {{"kv_n_heads", 2}, {"clip_qkv", 8.0}, {"rope_theta", 1e4}}},
    {"ffn_config",
     {{"moe_num_experts", 4}, {"moe_top_k", 2}, {"ffn_hidden_size", 96}}},
    {"hybrid_layer_pattern", {0, 1}},
    {"moe_layer_freq", 1},
    {"layernorm_epsilon", 1e-5},
    {"swa_rope_theta", 1e4},
    {"swa_num_attention_heads", 4},
    {"swa_num_key_value_heads", 2},
    {"swa_head_dim", 16},
    {"swa_v_head_dim", 16},
    {"sliding_window_size", 8},
    {"add_swa_attention_sink_bias", true},
    {"add_full_attention_sink_bias", false}};

const json kLongcatFields = {{"attention_method", "MLA"},
                             {"zero_expert_type", "identity"},
                             {"ffn_hidden_size", 96},
                             {"moe_topk", 2},
                             {"expert_ffn_hidden_size", 32},
                             {"zero_expert_num", 2},
                             {"routed_scaling_factor", 1.5},
                             {"mla_scale_q_lora", true},
                             {"mla_scale_kv_lora", true}};

const json kDeepseekV41Fields = {{"o_groups", 2},
                                 {"compress_ratios", {0, 4}},
                                 {"kv_source_layer_ids", {1}},
                                 {"index_source_layer_ids", {1}},
                                 {"candidate_source_layer_id", 1},
                                 {"index_head_dim", 16},
                                 {"index_topk", 2},
                                 {"rope_scaling", nullptr}};

// Families that refuse what others need.
const std::map<std::string, json, std::less<>> kFieldsOfFamilies = {
    {"afm7",
     {{"hidden_dim", 64},
      {"num_heads", 4},
      {"num_kv_heads", 2},
      {"num_kv_reuse_layers", 1}}},
    {"bailing_moe_linear", {{"topk_group", 1}, {"rope_scaling", nullptr}}},
    {"deepseek_v4",
     {{"num_key_value_heads", 1},
      {"o_groups", 2},
      {"layer_types",
       {"compressed_sparse_attention", "heavily_compressed_attention"}},
      {"mlp_layer_types", {"hash_moe", "moe"}},
      {"index_head_dim", 16},
      {"rope_parameters", nullptr},
      {"rope_scaling", nullptr}}},
    {"deepseek_v41", kDeepseekV41Fields},
    {"deepseek_v41_text", kDeepseekV41Fields},
    {"falcon_h1",
     {{"mamba_d_ssm", 64}, {"mamba_n_heads", 4}, {"mamba_d_head", 16}}},
    {"gear", {{"layer_types", {"conv_mixer", "sliding_attention"}}}},
    {"gemma3n",
     {{"layer_types", {"sliding_attention", "full_attention"}},
      {"rope_local_base_freq", 1e4},
      {"rope_scaling", nullptr},
      {"altup_num_inputs", 2},
      {"altup_active_idx", 0},
      {"altup_correct_scale", true},
      {"laurel_rank", 8}}},
    {"glm4_moe_lite", {{"partial_rotary_factor", 1.0}}},
    {"gpt2", {{"num_key_value_heads", 4}}},
    {"gpt_bigcode", {{"num_key_value_heads", 1}}},
    {"gpt_neox", {{"num_key_value_heads", 4}}},
    {"granitemoehybrid",
     {{"layer_types", {"mamba", "attention"}},
      {"shared_intermediate_size", 32},
      {"mamba_n_heads", 4},
      {"mamba_d_head", 16},
      {"mamba_n_groups", 1}}},
    {"hunyuan",
     {{"moe_topk", 2},
      {"num_shared_expert", 1},
      {"use_mixed_mlp_moe", true},
      {"use_cla", true},
      {"cla_share_factor", 2}}},
    {"llama4", {{"num_experts_per_tok", 1}}},
    {"longcat_flash", kLongcatFields},
    {"longcat_flash_ngram", kLongcatFields},
    {"mellum",
     {{"layer_types", {"sliding_attention", "full_attention"}},
      {"rope_parameters",
       {{"full_attention", {{"rope_theta", 1e4}}},
        {"sliding_attention", {{"rope_theta", 1e3}}}}}}},
    {"mimo_v2_flash", {{"moe_layer_freq", {0, 1}}}},
    {"minimax_m3_vl",
     {{"moe_layer_freq", {0, 1}},
      {"index_n_heads", 2},
      {"index_head_dim", 16},
      {"index_block_size", 4},
      {"index_topk_blocks", 2}}},
    {"muse_spark",
     {{"layer_types", {"sliding_attention", "full_attention"}},
      {"layer_rope_theta", {1e4, 0.0}},
      {"num_shared_experts", 0},
      {"moe_hidden_size", 32},
      {"post_norm_eps", 1e-6},
      {"output_multiplier", 0.5},
      {"final_logit_softcapping", 20.0}}},
    {"nemotron-nas",
     {{"block_configs",
       {{{"attention", {{"n_heads_in_group", 2}}},
         {"ffn", {{"ffn_mult", 1.5}}}},
        {{"attention", {{"no_op", true}}},
         {"ffn", {{"replace_with_linear", true}}}}}}}},
    {"nemotron", {{"rope_scaling", nullptr}}},
    {"phi-msft", {{"num_heads", 4}}},
    {"phi3small",
     {{"ff_intermediate_size", 128},
      {"gegelu_limit", 20.0},
      {"dense_attention_every_n_layers", 2}}},
    {"phixtral", {{"num_heads", 4}}},
    {"prism_hadamard_qwen35",
     {{"tensor_namespace", "mlx-vlm-qwen3_5"},
      {"quantization", {{"bits", 2}, {"group_size", 128}, {"mode", "affine"}}},
      {"modules",
       {{{"path", "lm_head"},
         {"block", 0},
         {"embedding", false},
         {"dtype", "float16"}}}},
      {"num_experts", 0},
      {"rope_parameters", nullptr}}},
    {"qwen3_5", {{"num_experts", 0}, {"rope_parameters", nullptr}}},
    {"qwen3_5_moe", {{"rope_parameters", nullptr}}},
    {"qwen3_next", {{"rope_scaling", nullptr}}}};

// A configuration of each family that has all fields it needs.
json complete_config(std::string_view model_type) {
  json config = tiny_config();
  config.update(kFieldsOfSome);
  config["model_type"] = model_type;
  auto own = kFieldsOfFamilies.find(model_type);
  if (own != kFieldsOfFamilies.end()) config.update(own->second);
  config["text_config"] = config;
  return config;
}

// The fields that the family asks for.
std::vector<std::string> fields_of(const Family& family, const json& config) {
  Checkpoint checkpoint{.config = config};
  ConfigReader reader(checkpoint.config);
  family.make_spec(reader, checkpoint);
  const auto unread = reader.unread();
  std::vector<std::string> fields;
  for (const auto& [key, unused] : config.items()) {
    if (!std::ranges::count(unread, key)) fields.push_back(key);
  }
  return fields;
}

// Whatever a field holds, the answer is an Error (here at the latest about the
// missing weights), not a crash or endless work.
TEST(MakeModel, AnyValueInAnyFieldIsAnsweredWithAnError) {
  const std::vector<json> values{nullptr,
                                 0,
                                 -1,
                                 3,
                                 1e300,
                                 2147483647,
                                 "text",
                                 true,
                                 json::array({1, "x"}),
                                 json::object({{"type", "yarn"}})};
  for (const auto& family : families()) {
    const auto config = complete_config(family.model_type);
    fault({.config = config}, ErrorKind::weights);
    for (const auto& key : fields_of(family, config)) {
      for (const auto& value : values) {
        SCOPED_TRACE(std::string(family.model_type) + " " + key + " = " +
                     value.dump());
        auto changed = config;
        changed[key] = value;
        EXPECT_THROW(make_model({.config = changed}), Error);
      }
    }
  }
}

TEST(MakeModel, IncompleteExpertsAreListed) {
  Checkpoint checkpoint{.config = complete_config("mixtral")};
  const std::string block = "model.layers.0.block_sparse_moe.experts.";
  checkpoint.weights.insert_or_assign(block + "0.w1.weight", mx::zeros({4, 4}));
  checkpoint.weights.insert_or_assign(block + "2.w1.weight", mx::zeros({4, 5}));
  auto message = fault(std::move(checkpoint), ErrorKind::weights);
  EXPECT_THAT(message, HasSubstr(block + "1.w1.weight is missing"));
  EXPECT_THAT(message, HasSubstr(block + "2.w1.weight has another shape"));
}

}  // namespace
}  // namespace mlxlm
