// glm4_moe and those with its experts: solar_open, dots1, exaone_moe.
#include <algorithm>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec glm4_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  // The head is the model's own even where the configuration ties it.
  spec.tied_head = config.get_bool("tie_word_embeddings", false) &&
                   !checkpoint.weights.contains("lm_head.weight");
  spec.qkv_bias = config.get_bool("attention_bias", false);
  if (config.get_bool("use_qk_norm", false)) spec.qk_norm = QkNorm::per_head;
  const int dimensions = rotated_dimensions(
      config, spec.head_size, config.require_float("partial_rotary_factor"));
  spec.ropes = {
      read_scaled_rope(config,
                       dimensions,
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1))};
  use_experts(spec,
              read_routed_experts(config),
              config.require_int("first_k_dense_replace", 0));
  drop_layers_from(checkpoint,
                   spec.prefix + spec.layers_name + ".",
                   static_cast<int>(spec.layers.size()));
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec dots1_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qkv_bias = config.get_bool("attention_bias", false);
  spec.o_bias = spec.qkv_bias;
  spec.mlp_bias = config.get_bool("mlp_bias", false);
  spec.qk_norm = QkNorm::per_head;
  spec.ropes = {read_scaled_rope(config,
                                 spec.head_size,
                                 0,
                                 false,
                                 config.find_int("max_position_embeddings"))};
  auto experts = read_routed_experts(config);
  if (experts) experts->names.stack = "experts";
  use_experts(spec, experts, config.require_int("first_k_dense_replace", 0));
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec exaone_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qk_norm = QkNorm::per_head;
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       1e6,
                       false,
                       config.require_int("max_position_embeddings", 1))};
  read_layer_types(config, spec);
  const auto sparse = config.find_bools("is_moe_layer");
  if (!sparse || sparse->size() != spec.layers.size()) {
    config.fail(
        "is_moe_layer",
        "a list of num_hidden_layers = " + std::to_string(spec.layers.size()) +
            " times true or false");
  }
  const auto experts = read_routed_experts(config,
                                           {.count_name = "num_experts",
                                            .shared_name = "num_shared_experts",
                                            .scale = 2.5});
  hold_windows(spec);
  const bool windowed = std::ranges::any_of(
      spec.layers, [](const LayerSpec& layer) { return layer.rotating_cache; });
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    // Where there are windows, only they know positions.
    if (windowed && !layer.rotating_cache) layer.rope = -1;
    if ((*sparse)[i]) layer.experts = experts;
  }
  using Action = WeightRule::Action;
  apply_rules(checkpoint,
              {{Action::drop, "mtp.*"},
               {Action::rename,
                "*.mlp.e_score_correction_bias",
                "*.mlp.gate.e_score_correction_bias"}});
  stack_layers(checkpoint, spec);
  return spec;
}

}  // namespace mlxlm
