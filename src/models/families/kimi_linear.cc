// kimi_linear: Kimi delta attention among layers of latent attention.
#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/latent_fields.h"
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

std::optional<ExpertsSpec> read_kimi_experts(const ConfigReader& config) {
  if (config.require_int("num_experts", 0) == 0) return std::nullopt;
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
  spec.latent->absorbed = true;
  spec.latent->eps = spec.norm.eps;
  const auto& sizes = spec.latent->sizes;
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
  use_experts(spec,
              read_kimi_experts(config),
              config.get_int("first_k_dense_replace", 0),
              config.get_int("moe_layer_freq", 1, 1));
  stack_layers(checkpoint, spec, kNumberedParts);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    if (spec.layers[i].mixer != kAttention) continue;
    split_kv_b(checkpoint, spec.layer_path(i) + "self_attn", sizes);
  }
  return spec;
}

}  // namespace mlxlm
