// kimi_linear, kimi_k3: Kimi delta attention among layers of latent attention.
#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/latent_fields.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

const std::vector<WeightRule> kToReference{
    {Action::drop, "model.mtp*"},
    {Action::rename,
     "*.block_sparse_moe.gate.e_score_correction_bias",
     "*.mlp.e_score_correction_bias"},
    {Action::rename, "*.block_sparse_moe.*", "*.mlp.*"},
    {Action::rename, "*.q_conv1d.weight", "*.q_conv.conv.weight"},
    {Action::rename, "*.k_conv1d.weight", "*.k_conv.conv.weight"},
    {Action::rename, "*.v_conv1d.weight", "*.v_conv.conv.weight"}};

DeltaNetSpec read_kda(const ConfigReader& config) {
  const int heads = config.require_int("num_heads", 1, 1 << 14);
  const int size = config.require_int("head_dim", 1, 1 << 14);
  return {.name = "self_attn",
          .num_heads = heads,
          .num_key_heads = heads,
          .key_size = size,
          .value_size = size,
          .num_taps = config.get_int("short_conv_kernel_size", 4, 2, 1 << 10),
          .qkv = {"q_proj", "k_proj", "v_proj"},
          .convs = {"q_conv.conv", "k_conv.conv", "v_conv.conv"},
          .decay = {"f_a_proj", "f_b_proj"},
          .gate = {"g_a_proj", "g_b_proj"},
          .beta = "b_proj",
          .norm = "o_norm",
          .out = "o_proj",
          .decay_per_key = true,
          .sigmoid_gate = true};
}

ExpertsSpec read_kimi_experts(const ConfigReader& config) {
  auto experts = read_experts(config, {.chosen = "num_experts_per_token"});
  experts.shared_hidden_size =
      config.get_int("num_shared_experts", 0, 0, 1 << 10) * experts.hidden_size;
  experts.names.selection_bias = "e_score_correction_bias";
  auto& router = experts.router;
  accept_only(config, "moe_router_activation_func", {"sigmoid", "softmax"});
  if (config.get_string("moe_router_activation_func", "sigmoid") == "sigmoid") {
    router.score = nn::RouterScore::sigmoid;
  }
  router.normalize =
      config.get_bool("moe_renormalize", true) && router.num_chosen > 1;
  router.scale =
      static_cast<float>(config.get_float("routed_scaling_factor", 1.0));
  // As in the reference, whatever this says.
  config.get_bool("use_grouped_topk", true);
  read_groups(config, experts, {.count = "num_expert_group"});
  return experts;
}

// Delta attention in the layers that linear_attn_config names, latent attention
// without positions in the others.
void place_kda(const ConfigReader& config, ArchSpec& spec) {
  spec.latent->absorbed = true;
  for (auto& layer : spec.layers) layer.rope = -1;
  const auto linear = config.require_object("linear_attn_config");
  auto kda = read_kda(linear);
  kda.norm_eps = spec.norm.eps;
  spec.mixers = {kda};
  const auto kda_layers = linear.find_ints("kda_layers", 1);
  if (!kda_layers) linear.fail("kda_layers", "a list of layers, from 1 on");
  for (int layer : *kda_layers) {
    if (layer <= static_cast<int>(spec.layers.size())) {
      spec.layers[layer - 1].mixer = 0;
    }
  }
  spec.own_caches = true;
}

void place_experts(const ConfigReader& config,
                   const std::optional<ExpertsSpec>& experts,
                   Checkpoint& checkpoint,
                   ArchSpec& spec) {
  use_experts(spec,
              experts,
              config.get_int("first_k_dense_replace", 0),
              config.get_int("moe_layer_freq", 1, 1));
  stack_layers(checkpoint, spec, kNumberedParts);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    if (spec.layers[i].mixer != kAttention) continue;
    split_kv_b(
        checkpoint, spec.layer_path(i) + "self_attn", spec.latent->sizes);
  }
}

const std::vector<WeightRule> kDepthNames{
    {Action::drop, "mtp*"},
    {Action::rename, "*_res.proj_weight", "*_res_proj.weight"},
    {Action::rename, "*_res.norm_weight", "*_res_norm.weight"}};

// What K3's delta attention has besides.
void use_k3_kda(const ConfigReader& config,
                Checkpoint& checkpoint,
                ArchSpec& spec) {
  const auto linear = config.require_object("linear_attn_config");
  auto& kda = std::get<DeltaNetSpec>(spec.mixers[0]);
  if (auto bound = linear.find_float("gate_lower_bound")) {
    kda.lower_bound = static_cast<float>(*bound);
  }
  if (linear.get_bool("use_full_rank_gate", false)) kda.gate = {"g_proj"};
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if (spec.layers[i].mixer == kAttention) continue;
    const auto path = spec.layer_path(static_cast<int>(i)) + "self_attn.";
    // Converted checkpoints have the three in one.
    if (checkpoint.weights.contains(path + "qkv_proj.weight")) {
      kda.qkv = {"qkv_proj"};
      kda.convs = {"qkv_conv.conv"};
    }
    // Some are published with numbers after those of the heads.
    auto rate = checkpoint.weights.find(path + "A_log");
    if (rate != checkpoint.weights.end() &&
        rate->second.size() > static_cast<std::size_t>(kda.num_heads)) {
      rate->second = mx::slice(mx::flatten(rate->second), {0}, {kda.num_heads});
    }
  }
}

ExpertsSpec read_k3_experts(const ConfigReader& config) {
  require_text(config, "moe_router_activation_func", "sigmoid");
  auto experts = read_kimi_experts(config);
  experts.latent_size =
      config.find_int("routed_expert_hidden_size", 1, 1 << 20).value_or(0);
  experts.names.to_latent = "routed_expert_down_proj";
  experts.names.from_latent = "routed_expert_up_proj";
  if (config.get_bool("latent_moe_use_norm", false) &&
      experts.latent_size > 0) {
    experts.names.latent_output_norm = "routed_expert_norm";
  }
  return experts;
}

ArchSpec kimi_k3_text_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::from_width,
                         {.hidden_size = 7168,
                          .num_layers = 93,
                          .intermediate_size = 33792,
                          .num_heads = 96,
                          .vocabulary_size = 163840,
                          .eps = 1e-5,
                          .num_kv_heads = 96});
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  require_text(config, "hidden_act", "situ");
  require_true(config, "mla_use_nope");
  apply_rules(checkpoint, kToReference);
  apply_rules(checkpoint, kDepthNames);
  drop_layers_from(
      checkpoint, "model.layers.", static_cast<int>(spec.layers.size()));
  spec.block_layers = config.find_int("attn_res_block_size", 1).value_or(0);
  spec.latent = read_latent(config, spec, {});
  if (config.get_bool("mla_use_output_gate", false)) {
    spec.output_gate = OutputGate::full;
    spec.names.output_gate = "g_proj";
  }
  place_kda(config, spec);
  use_k3_kda(config, checkpoint, spec);
  auto bend = [&](const char* key, double fallback) {
    const double value = config.get_float(key, fallback);
    return static_cast<float>(value == 0 ? fallback : value);
  };
  const kernels::GateClamp clamp{
      .gate_bend = bend("activation_situ_beta", 1),
      .up_bend = bend("activation_situ_linear_beta", 0)};
  for (auto& layer : spec.layers) layer.clamp = clamp;
  std::optional<ExpertsSpec> experts;
  if (config.get_int("num_experts", 0) > 0) {
    experts = read_k3_experts(config);
    experts->clamp = clamp;
  }
  place_experts(config, experts, checkpoint, spec);
  return spec;
}

}  // namespace

ArchSpec kimi_linear_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.context_tokens = config.require_int("model_max_length");
  apply_rules(checkpoint, kToReference);
  // Latent attention, as in the reference without positions whatever these say.
  config.get_bool("mla_use_nope", false);
  config.find_float("rope_theta");
  spec.latent = read_latent(
      config, spec, {.fixed = spec.head_size, .value = spec.head_size});
  spec.latent->eps = spec.norm.eps;
  place_kda(config, spec);
  std::optional<ExpertsSpec> experts;
  if (config.require_int("num_experts", 0) > 0) {
    experts = read_kimi_experts(config);
  }
  place_experts(config, experts, checkpoint, spec);
  return spec;
}

ArchSpec kimi_k3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  return text_half_spec(
      text_config_or_all(config), checkpoint, kimi_k3_text_spec);
}

}  // namespace mlxlm
