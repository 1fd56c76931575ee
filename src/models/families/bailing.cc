// bailing_moe; with lightning attention among its layers bailing_moe_linear
// and, the others latent attention, bailing_hybrid, whose third version has
// delta networks instead.
#include <limits>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/latent_fields.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

constexpr float kNever = -std::numeric_limits<float>::infinity();

const std::vector<WeightRule> kGateRules{
    {Action::rename, "*.mlp.gate.weight", "*.mlp.gate.gate_proj.weight"},
    {Action::rename, "*.mlp.gate.bias", "*.mlp.gate.gate_proj.bias"}};

struct BailingDefaults {
  bool qk_norm = false;
  bool selection_bias = false;
  const char* score = "softmax";
};

ArchSpec read_bailing(const ConfigReader& config,
                      KvHeads kv_heads,
                      HeadSize head_size,
                      const BailingDefaults& defaults) {
  auto spec = read_sizes(config, kv_heads, head_size);
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

// mixers[0], but for the last layer of each group and those that don't fill
// one.
void use_groups(const ConfigReader& config, ArchSpec& spec) {
  const int num_layers = static_cast<int>(spec.layers.size());
  const int size = config.require_int("layer_group_size", 1);
  for (int i = 0; i < num_layers / size * size; ++i) {
    if ((i + 1) % size != 0) spec.layers[i].mixer = 0;
  }
  spec.own_caches = true;
}

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
  use_groups(config, spec);
}

// Absorbed latent attention with the rope given as ropes[0].
void use_latents(const ConfigReader& config,
                 const LatentDefaults& defaults,
                 bool traditional,
                 ArchSpec& spec) {
  spec.latent = read_latent(config, spec, defaults);
  spec.latent->absorbed = true;
  spec.latent->bias = spec.qkv_bias;
  spec.latent->eps = spec.norm.eps;
  spec.ropes = {
      read_scaled_rope(config,
                       spec.latent->sizes.rotated,
                       0,
                       traditional,
                       config.require_int("max_position_embeddings", 1))};
}

// The experts' and the latents' tensors in their places, without layers that
// predict further on.
void place_hybrid(Checkpoint& checkpoint, const ArchSpec& spec) {
  const int num_layers = static_cast<int>(spec.layers.size());
  drop_layers_from(checkpoint, "model.layers.", num_layers);
  stack_layers(checkpoint, spec);
  for (int i = 0; i < num_layers; ++i) {
    if (spec.layers[i].mixer != kAttention) continue;
    split_kv_b(
        checkpoint, spec.layer_path(i) + "attention", spec.latent->sizes);
  }
}

// As Kimi's, with full projections for decay and gate.
ArchSpec bailing_v3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_bailing(config, KvHeads::as_heads, HeadSize::required, {});
  for (const char* key : {"no_kda_lora", "kda_safe_gate", "rope_interleave"}) {
    require_true(config, key);
  }
  const LatentDefaults sizes{.rank = 512,
                             .query_rank = 256,
                             .fixed = 128,
                             .rotated = 64,
                             .value = 128};
  use_latents(config, sizes, /*traditional=*/true, spec);
  spec.output_gate = OutputGate::per_head;
  spec.names.output_gate = "g_proj";
  spec.mixers = {DeltaNetSpec{
      .name = "attention",
      .num_heads = spec.num_heads,
      .num_key_heads = spec.num_heads,
      .key_size = spec.head_size,
      .value_size = spec.head_size,
      .num_taps = config.get_int("short_conv_kernel_size", 4, 2, 1 << 10),
      .qkv = {"q_proj", "k_proj", "v_proj"},
      .convs = {"q_conv1d", "k_conv1d", "v_conv1d"},
      .decay = {"f_proj"},
      .gate = {"g_proj"},
      .beta = "b_proj",
      .norm = "o_norm",
      .out = "o_proj",
      .decay_per_key = true,
      .sigmoid_gate = true,
      .lower_bound =
          static_cast<float>(config.get_float("kda_lower_bound", -5.0)),
      .norm_eps = spec.norm.eps}};
  use_groups(config, spec);
  auto experts = read_bailing_experts(
      config, false, {.selection_bias = true, .score = "sigmoid"});
  experts.router.normalize = true;
  experts.router.dropped_score = kNever;
  experts.names.router = "gate";
  use_experts(spec, experts, config.get_int("first_k_dense_replace", 1, 0));
  place_hybrid(checkpoint, spec);
  return spec;
}

}  // namespace

ArchSpec bailing_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_bailing(config, KvHeads::required, HeadSize::from_width, {});
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
  stack_layers(checkpoint, spec);
  apply_rules(checkpoint, kGateRules);
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

ArchSpec bailing_hybrid_spec(const ConfigReader& config,
                             Checkpoint& checkpoint) {
  const auto names = config.find_strings("architectures");
  if (names && !names->empty() && names->front() == "BailingMoeV3ForCausalLM") {
    return bailing_v3_spec(config, checkpoint);
  }
  const BailingDefaults defaults{
      .qk_norm = true, .selection_bias = true, .score = "sigmoid"};
  auto spec =
      read_bailing(config, KvHeads::required, HeadSize::required, defaults);
  use_latents(config, {}, config.get_bool("rope_interleave", true), spec);
  spec.ropes.push_back(read_partial_rope(config, spec.head_size, 0.5, false));
  use_lightning(config, spec, {.rope = 1});
  auto experts = read_bailing_experts(config, spec.mlp_bias, defaults);
  // Corrected scores may be below zero.
  experts.router.dropped_score = kNever;
  // One width for all of the shared ones, unlike in the others.
  if (auto all = config.find_int("moe_shared_expert_intermediate_size", 1);
      all && experts.shared_hidden_size > 0) {
    experts.shared_hidden_size = *all;
  }
  config.get_int("num_nextn_predict_layers", 0, 0);  // they are dropped
  use_experts(spec, experts, config.require_int("first_k_dense_replace", 0));
  apply_rules(checkpoint, kGateRules);
  place_hybrid(checkpoint, spec);
  return spec;
}

}  // namespace mlxlm
