// bailing_moe; with lightning attention among its layers bailing_moe_linear
// and, the others latent attention, bailing_hybrid.
#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

struct BailingDefaults {
  bool qk_norm = false;
  bool selection_bias = false;
  const char* score = "softmax";
};

ArchSpec read_bailing(const ConfigReader& config,
                      HeadSize head_size,
                      const BailingDefaults& defaults) {
  auto spec = read_sizes(config, KvHeads::required, head_size);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.embedding_name = "word_embeddings";
  spec.names.attention = "attention";
  spec.names.qkv = "query_key_value";
  spec.names.o = "dense";
  spec.names.q_norm = "query_layernorm";
  spec.names.k_norm = "key_layernorm";
  spec.qkv_bias = config.get_bool("use_qkv_bias", false);
  spec.o_bias = spec.mlp_bias = config.get_bool("use_bias", false);
  if (config.get_bool("use_qk_norm", defaults.qk_norm)) {
    spec.qk_norm = QkNorm::per_head;
  }
  return spec;
}

ExpertsSpec read_bailing_experts(const ConfigReader& config,
                                 bool bias,
                                 const BailingDefaults& defaults) {
  auto experts = read_experts(config);
  experts.bias = bias;
  if (config.get_bool("moe_router_enable_shared_expert", true)) {
    experts.shared_hidden_size =
        config.require_int("num_shared_experts", 0, 1 << 10) *
        config.get_int("moe_shared_expert_intermediate_size",
                       experts.hidden_size,
                       1,
                       1 << 20);
  }
  auto& router = experts.router;
  accept_only(config, "score_function", {"softmax", "sigmoid"});
  if (config.get_string("score_function", defaults.score) == "sigmoid") {
    router.score = nn::RouterScore::sigmoid;
  }
  router.normalize =
      config.get_bool("norm_topk_prob", true) && router.num_chosen > 1;
  router.scale =
      static_cast<float>(config.get_float("routed_scaling_factor", 1.0));
  read_groups(config, experts, {.num_chosen = 4});
  experts.names.router = "gate.gate_proj";
  if (config.get_bool("moe_router_enable_expert_bias",
                      defaults.selection_bias)) {
    experts.names.selection_bias = "gate.expert_bias";
  }
  return experts;
}

void place_bailing_experts(Checkpoint& checkpoint, const ArchSpec& spec) {
  stack_layers(checkpoint, spec);
  apply_rules(
      checkpoint,
      {{Action::rename, "*.mlp.gate.weight", "*.mlp.gate.gate_proj.weight"},
       {Action::rename, "*.mlp.gate.bias", "*.mlp.gate.gate_proj.bias"}});
}

nn::Rope read_partial_rope(const ConfigReader& config,
                           int head_size,
                           double share,
                           bool traditional) {
  return read_scaled_rope(
      config,
      rotated_dimensions(
          config, head_size, config.get_float("partial_rotary_factor", share)),
      0,
      traditional,
      config.require_int("max_position_embeddings", 1));
}

// Lightning attention, but for the last layer of each group and those that
// don't fill one.
void use_lightning(const ConfigReader& config,
                   ArchSpec& spec,
                   LightningSpec lightning) {
  lightning.head_size = spec.head_size;
  lightning.qkv_bias = spec.qkv_bias;
  lightning.out_bias = spec.o_bias;
  lightning.qk_norm = spec.qk_norm != QkNorm::none;
  lightning.norm_groups = config.require_int("group_norm_size", 1, 1 << 14);
  if (spec.num_heads * spec.head_size % lightning.norm_groups != 0) {
    config.fail("group_norm_size", "a divisor of the heads' numbers");
  }
  spec.mixers = {lightning};
  const int num_layers = static_cast<int>(spec.layers.size());
  const int size = config.require_int("layer_group_size", 1);
  for (int i = 0; i < num_layers / size * size; ++i) {
    if ((i + 1) % size != 0) spec.layers[i].mixer = 0;
  }
  spec.own_caches = true;
}

}  // namespace

ArchSpec bailing_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_bailing(config, HeadSize::from_width, {});
  require_false(config, "norm_softmax");
  if (config.get_int("head_dim", spec.head_size) != spec.head_size) {
    config.fail("head_dim", "hidden_size over num_attention_heads");
  }
  if (auto dimensions = config.find_int("rotary_dim", 2, spec.head_size)) {
    spec.ropes = {
        read_scaled_rope(config,
                         *dimensions,
                         0,
                         false,
                         config.require_int("max_position_embeddings", 1))};
  } else {
    spec.ropes = {read_partial_rope(config, spec.head_size, 1.0, false)};
  }
  use_experts(spec,
              read_bailing_experts(config, spec.mlp_bias, {}),
              config.require_int("first_k_dense_replace", 0));
  if (config.get_bool("norm_head", false)) {
    give_unit_length(checkpoint, "lm_head", 0);
  }
  place_bailing_experts(checkpoint, spec);
  return spec;
}

ArchSpec bailing_moe_linear_spec(const ConfigReader& config,
                                 Checkpoint& checkpoint) {
  auto spec = bailing_moe_spec(config, checkpoint);
  for (const char* key : {"use_rmsnorm", "moe_router_enable_routed_scaling"}) {
    require_true(config, key);
  }
  if (config.get_bool("rope_traditional", false)) {
    spec.ropes = {read_partial_rope(config, spec.head_size, 1.0, true)};
  }
  use_lightning(config, spec, {.first_layer = 1});
  return spec;
}

}  // namespace mlxlm
