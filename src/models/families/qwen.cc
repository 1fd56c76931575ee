// qwen, qwen2, qwen3, their mixtures of experts and text halves, and mixtral.
#include "models/config_fields.h"
#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

const ExpertParts kQwenParts{{"gate_proj", "gate_proj"},
                             {"up_proj", "up_proj"},
                             {"down_proj", "down_proj"}};
const ExpertParts kMixtralParts{
    {"w1", "gate_proj"}, {"w3", "up_proj"}, {"w2", "down_proj"}};

ExpertsSpec read_experts(const ConfigReader& config,
                         const char* count_name,
                         const char* size_name) {
  ExpertsSpec experts;
  experts.num_experts = config.require_int(count_name, 1, 1 << 14);
  experts.num_chosen =
      config.require_int("num_experts_per_tok", 1, experts.num_experts);
  experts.hidden_size = config.require_int(size_name, 1, 1 << 20);
  return experts;
}

// Joins the experts of every layer that has them.
void stack_layers(Checkpoint& checkpoint,
                  const ArchSpec& spec,
                  const ExpertParts& parts) {
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if (!spec.layers[i].experts) continue;
    stack_experts(
        checkpoint,
        spec.prefix + "layers." + std::to_string(i) + "." + spec.names.mlp,
        spec.experts->num_experts,
        parts);
  }
}

void use_experts_everywhere(ArchSpec& spec) {
  for (auto& layer : spec.layers) layer.experts = true;
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
  spec.ropes = {nn::make_rope(
      {.dimensions = spec.head_size,
       .base = read_rope_theta(config, 0),
       .max_positions = config.require_int("max_position_embeddings", 1)},
      find_rope_scaling(config))};
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
  spec.experts = read_experts(config, "num_experts", "moe_intermediate_size");
  spec.experts->shared_hidden_size =
      config.require_int("shared_expert_intermediate_size", 1, 1 << 20);
  use_experts_everywhere(spec);
  stack_layers(checkpoint, spec, kQwenParts);
  return spec;
}

ArchSpec qwen3_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = qwen3_spec(config, checkpoint);
  const int num_experts = config.require_int("num_experts", 0, 1 << 14);
  const int step = config.require_int("decoder_sparse_step", 1);
  const auto dense_layers = config.find_ints("mlp_only_layers");
  if (!dense_layers) config.fail("mlp_only_layers", "a list of layers");
  const bool normalize = config.require_bool("norm_topk_prob");
  if (num_experts > 0) {
    spec.experts = read_experts(config, "num_experts", "moe_intermediate_size");
    spec.experts->normalize = normalize;
    for (std::size_t i = 0; i < spec.layers.size(); ++i) {
      spec.layers[i].experts = (i + 1) % step == 0;
    }
  }
  for (int layer : *dense_layers) {
    if (static_cast<std::size_t>(layer) < spec.layers.size()) {
      spec.layers[layer].experts = false;
    }
  }
  stack_layers(checkpoint, spec, kQwenParts);
  return spec;
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
  spec.experts = ExpertsSpec{
      .num_experts = num_experts,
      .num_chosen = config.get_int("num_experts_per_tok", 2, 1, num_experts),
      .hidden_size = spec.intermediate_size,
      .router = nn::Router::top_k_softmax};
  use_experts_everywhere(spec);
  stack_layers(checkpoint, spec, kMixtralParts);
  return spec;
}

}  // namespace mlxlm
