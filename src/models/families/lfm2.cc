// lfm2, lfm2_moe (short convolutions among the attention layers) and lfm2-vl,
// whose text half is lfm2.
#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

// The layers with attention: full_attn_idxs, else those that layer_types calls
// "full_attention". The others are convolutions.
void read_attention_layers(const ConfigReader& config, ArchSpec& spec) {
  const int num_layers = static_cast<int>(spec.layers.size());
  const auto types = config.find_strings("layer_types");
  auto indices = config.find_ints("full_attn_idxs");
  if (!indices) {
    if (!types) config.fail("layer_types", "a list, or full_attn_idxs one");
    indices.emplace();
    for (int i = 0; i < static_cast<int>(types->size()); ++i) {
      if ((*types)[i] == "full_attention") indices->push_back(i);
    }
  }
  for (auto& layer : spec.layers) layer.mixer = 0;
  for (int index : *indices) {
    if (index < num_layers) spec.layers[index].mixer = kAttention;
  }
}

// What both have.
ArchSpec lfm2_like(const ConfigReader& config, const FieldDefaults& defaults) {
  auto spec =
      read_sizes(config, KvHeads::as_heads, HeadSize::from_width, defaults);
  spec.tied_head = true;
  spec.names.o = "out_proj";
  spec.names.q_norm = "q_layernorm";
  spec.names.k_norm = "k_layernorm";
  spec.names.attention_norm = "operator_norm";
  spec.names.mlp = "feed_forward";
  spec.names.mlp_norm = "ffn_norm";
  spec.norm_name = "embedding_norm";
  spec.qk_norm = QkNorm::per_head;
  spec.ropes = {read_nested_rope(config, spec.head_size, 1e6)};
  spec.mixers = {
      ShortConvSpec{.num_taps = config.require_int("conv_L_cache", 2, 1 << 10),
                    .bias = config.require_bool("conv_bias")}};
  read_attention_layers(config, spec);
  spec.own_caches = true;
  return spec;
}

int read_mlp_size(const ConfigReader& config) {
  auto given = config.find_int("block_ff_dim", 1, 1 << 20);
  if (!given) given = config.require_int("intermediate_size", 1, 1 << 20);
  const double multiplier = config.get_float("block_ffn_dim_multiplier", 1.0);
  const int multiple = config.require_int("block_multiple_of", 1, 1 << 20);
  if (!config.require_bool("block_auto_adjust_ff_dim")) return *given;
  const double size = multiplier * (2 * *given / 3);
  if (!(size >= 1 && size <= 1 << 20)) {
    config.fail("block_ffn_dim_multiplier", "a factor that leaves a width");
  }
  return multiple * ((static_cast<int>(size) + multiple - 1) / multiple);
}

}  // namespace

ArchSpec lfm2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec =
      lfm2_like(config, {.intermediate_size = 1, .eps_name = "norm_eps"});
  spec.intermediate_size = read_mlp_size(config);
  if (config.require_int("block_dim") != spec.hidden_size) {
    config.fail("block_dim",
                "hidden_size = " + std::to_string(spec.hidden_size));
  }
  spec.names.gate = "w1";
  spec.names.up = "w3";
  spec.names.down = "w2";
  return spec;
}

ArchSpec lfm2_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  using Action = WeightRule::Action;
  auto spec = lfm2_like(config, {.eps_name = "norm_eps"});
  apply_rules(checkpoint,
              {{Action::rename, "*.w1.*", "*.gate_proj.*"},
               {Action::rename, "*.w2.*", "*.down_proj.*"},
               {Action::rename, "*.w3.*", "*.up_proj.*"}});
  auto experts = read_experts(config);
  experts.router.score = nn::RouterScore::sigmoid;
  experts.router.scale =
      static_cast<float>(config.get_float("routed_scaling_factor", 1));
  experts.router.normalize = config.require_bool("norm_topk_prob");
  if (config.require_bool("use_expert_bias")) {
    experts.names.selection_bias = "expert_bias";
  }
  use_experts(spec, experts, config.require_int("num_dense_layers", 0));
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec lfm2_vl_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  drop_weights(checkpoint, [](std::string_view name) {
    return name.starts_with("vision_tower.") ||
           name.starts_with("multi_modal_projector.");
  });
  auto spec = lfm2_spec(config.require_object("text_config"), checkpoint);
  spec.prefix = "language_model.model.";
  spec.head_name = "language_model.lm_head";
  return spec;
}

}  // namespace mlxlm
