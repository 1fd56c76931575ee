// hy_v3 (Tencent Hy3): attention with norms of each head's queries and keys,
// experts of DeepSeek-V3's kind. Method: transformers/models/hy_v3.
#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

const std::vector<WeightRule> kPublished{
    {Action::rename, "*.mlp.router.gate.*", "*.mlp.gate.*"},
    {Action::rename, "*.mlp.expert_bias", "*.mlp.e_score_correction_bias"},
    {Action::rename, "*.mlp.shared_mlp.*", "*.mlp.shared_experts.*"}};

ExpertsSpec read_hy_experts(const ConfigReader& config) {
  auto experts = read_experts(config);
  experts.shared_hidden_size =
      config.get_int("num_shared_experts", 1, 1, 1 << 10) * experts.hidden_size;
  experts.names.selection_bias = "e_score_correction_bias";
  experts.router.score = nn::RouterScore::sigmoid;
  experts.router.normalize = true;
  experts.router.scale =
      static_cast<float>(config.get_float("router_scaling_factor", 2.826));
  require_true(config, "route_norm");
  return experts;
}

// mlp_layer_types, or all but the first_k_dense_replace first.
void place_experts(const ConfigReader& config, ArchSpec& spec) {
  use_experts(spec,
              read_hy_experts(config),
              config.get_int("first_k_dense_replace", 1));
  const auto types = config.find_strings("mlp_layer_types");
  if (!types) return;
  if (types->size() != spec.layers.size()) {
    config.fail("mlp_layer_types", "a type for each layer");
  }
  for (std::size_t i = 0; i < types->size(); ++i) {
    if ((*types)[i] == "dense") {
      spec.layers[i].experts.reset();
    } else if ((*types)[i] == "sparse") {
      spec.layers[i].experts = read_hy_experts(config);
    } else {
      config.fail("mlp_layer_types", "a list of \"dense\" and \"sparse\"");
    }
  }
}

}  // namespace

ArchSpec hy_v3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.eps = 1e-5, .head_size = 128});
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  read_biases(config, spec);
  spec.qk_norm = QkNorm::per_head;
  require_true(config, "qk_norm");
  require_text(config, "hidden_act", "silu");
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       11158840,
                       false,
                       config.get_int("max_position_embeddings", 131072))};
  place_experts(config, spec);
  apply_rules(checkpoint, kPublished);
  drop_layers_from(
      checkpoint, "model.layers.", static_cast<int>(spec.layers.size()));
  stack_layers(checkpoint, spec);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto mlp = spec.layer_path(i) + "mlp.";
    split_joined_experts(checkpoint, mlp + "experts", mlp + "switch_mlp", {});
  }
  return spec;
}

}  // namespace mlxlm
