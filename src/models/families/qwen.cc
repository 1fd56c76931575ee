// qwen, qwen2, qwen3, their mixtures of experts and text halves, and mixtral.
#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/text_half.h"

namespace mlxlm {
namespace {

// qwen3_moe whose experts are published as one tensor, inputs first.
ArchSpec joined_qwen3_moe_spec(const ConfigReader& config,
                               Checkpoint& checkpoint) {
  auto spec = qwen3_moe_spec(config, checkpoint);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto mlp = spec.layer_path(i) + "mlp.";
    split_joined_experts(
        checkpoint, mlp + "experts", mlp + "switch_mlp", {.swapped = true});
  }
  return spec;
}

}  // namespace
ArchSpec qwen2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = true;
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          1e6,
                          false,
                          config.get_int("max_position_embeddings", 32768))};
  return spec;
}

ArchSpec qwen3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.qk_norm = QkNorm::per_head;
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1))};
  return spec;
}

ArchSpec qwen_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.hidden_size = 2048,
                          .num_layers = 24,
                          .intermediate_size = 11008,
                          .num_heads = 16,
                          .vocabulary_size = 151936,
                          .eps_name = "layer_norm_epsilon",
                          .eps = 1e-6,
                          .names = {.num_kv_heads = nullptr}});
  if (config.get_int("kv_channels", 128) != spec.head_size) {
    config.fail("kv_channels", "hidden_size over num_attention_heads");
  }
  spec.intermediate_size /= 2;  // counts gate and up
  if (spec.intermediate_size == 0) config.fail("intermediate_size", "over 1");
  use_gpt_names(spec);
  spec.names.qkv = "c_attn";
  spec.names.o = "c_proj";
  spec.names.gate = "w2";
  spec.names.up = "w1";
  spec.names.down = "c_proj";
  spec.qkv_bias = true;
  spec.o_bias = spec.mlp_bias = spec.head_bias =
      !config.get_bool("no_bias", true);
  spec.ropes = {nn::make_rope({.dimensions = spec.head_size}, std::nullopt)};
  return spec;
}

ArchSpec qwen2_vl_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  return text_half_spec(text_config_or_all(config), checkpoint, qwen2_spec);
}

ArchSpec qwen3_vl_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  return text_half_spec(text_config_or_all(config), checkpoint, qwen3_spec);
}

ArchSpec qwen2_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::from_width);
  // The reference has a head of its own even where the configuration ties it.
  spec.tied_head = config.get_bool("tie_word_embeddings", false) &&
                   !checkpoint.weights.contains("lm_head.weight");
  spec.qkv_bias = true;
  spec.ropes = {
      read_rope(config, spec.head_size, 1e6, false, spec.context_tokens)};
  auto experts = read_experts(config);
  read_gated_shared_expert(config, experts);
  use_experts(spec, experts);
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec qwen3_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = qwen3_spec(config, checkpoint);
  const bool normalize = config.require_bool("norm_topk_prob");
  if (config.require_int("num_experts", 0) > 0) {
    auto experts = read_experts(config);
    experts.router.normalize = normalize;
    use_experts(spec, experts);
  }
  if (!config.has("mlp_only_layers")) {
    config.fail("mlp_only_layers", "a list of layers");
  }
  keep_dense_layers(config, spec);
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec qwen3_vl_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  return text_half_spec(
      text_config_or_all(config), checkpoint, joined_qwen3_moe_spec);
}

ArchSpec mixtral_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  // Null stands for as many as there are heads, as in the reference.
  const bool given_as_null = config.raw().contains("num_key_value_heads");
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.hidden_size = 4096,
                          .num_layers = 32,
                          .intermediate_size = 14336,
                          .num_heads = 32,
                          .vocabulary_size = 32000,
                          .eps = 1e-5,
                          .num_kv_heads = given_as_null ? 0 : 8});
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.names.mlp = "block_sparse_moe";
  spec.ropes = {
      read_rope(config, spec.head_size, 1e6, false, spec.context_tokens)};
  const int num_experts = config.get_int("num_local_experts", 8, 1, 1 << 14);
  ExpertsSpec experts{.num_experts = num_experts,
                      .hidden_size = spec.intermediate_size};
  experts.router.score = nn::RouterScore::chosen_softmax;
  experts.router.num_chosen =
      config.get_int("num_experts_per_tok", 2, 1, num_experts);
  use_experts(spec, experts);
  stack_layers(checkpoint, spec, kNumberedParts);
  return spec;
}

}  // namespace mlxlm
