// Plain attention with experts: olmoe, granitemoe, ernie4_5_moe, mellum, klear,
// phimoe.
#include <algorithm>
#include <map>

#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec olmoe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.qk_norm = QkNorm::over_heads;
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.find_int("max_position_embeddings"))};
  auto experts = read_experts(config, {.hidden_size = "intermediate_size"});
  experts.bias = config.get_bool("mlp_bias", false);
  experts.router.normalize = config.get_bool("norm_topk_prob", false);
  use_experts(spec, experts);
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec granitemoe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = granite_spec(config, checkpoint);
  spec.names.mlp = "block_sparse_moe";
  auto experts = read_experts(
      config,
      {.count = "num_local_experts", .hidden_size = "intermediate_size"});
  experts.router.score = nn::RouterScore::chosen_softmax;
  experts.names.router = "router.layer";
  use_experts(spec, experts);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto block = spec.layer_path(i) + spec.names.mlp;
    split_joined_experts(checkpoint,
                         block,
                         block + ".switch_mlp",
                         {"input_linear.weight", "output_linear.weight"});
  }
  return spec;
}

ArchSpec ernie4_5_moe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  const bool bias = config.require_bool("use_bias");
  spec.qkv_bias = spec.o_bias = spec.mlp_bias = bias;
  spec.ropes = {read_plain_rope(config, spec.head_size, 0, true)};
  ExpertsSpec experts;
  experts.num_experts = config.require_int("moe_num_experts", 1, 1 << 14);
  experts.hidden_size = config.get_int("moe_intermediate_size", 0, 0, 1 << 20);
  if (experts.hidden_size == 0) experts.hidden_size = spec.intermediate_size;
  experts.bias = bias;
  experts.shared_hidden_size =
      experts.hidden_size *
      config.get_int("moe_num_shared_experts", 0, 0, 1 << 10);
  accept_only(config, "moe_gate_act", {"softmax", "sigmoid"});
  if (config.get_string("moe_gate_act", "") == "sigmoid") {
    experts.router.score = nn::RouterScore::sigmoid;
  }
  experts.router.num_chosen =
      config.get_int("moe_k", 1, 1, experts.num_experts);
  experts.router.normalize = true;
  // A list of them is for text and images.
  auto all_of = [&](const char* key, int fallback) {
    auto ints = config.find_ints(key).value_or(std::vector<int>{fallback});
    if (ints.empty()) config.fail(key, "a whole number");
    return ints;
  };
  const int num_layers = static_cast<int>(spec.layers.size());
  const auto firsts = all_of("moe_layer_start_index", 0);
  const auto lasts = all_of("moe_layer_end_index", num_layers - 1);
  const int first = *std::min_element(firsts.begin(), firsts.end());
  const int last = *std::max_element(lasts.begin(), lasts.end());
  const int interval = config.get_int("moe_layer_interval", 1, 1);
  apply_rules(checkpoint, {{WeightRule::Action::drop, "*mtp_*"}});
  for (int i = first; i <= std::min(last, num_layers - 1); ++i) {
    if ((i + 1) % interval != 0) continue;
    auto& chosen = spec.layers[i].experts.emplace(experts);
    const auto mlp = spec.layer_path(i) + "mlp.";
    const std::string bias_name = "moe_statics.e_score_correction_bias";
    if (auto value = take_weight(checkpoint, mlp + bias_name)) {
      chosen.names.selection_bias = bias_name;
      checkpoint.weights.insert_or_assign(mlp + bias_name, mx::flatten(*value));
    }
  }
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec mellum_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.qk_norm = QkNorm::per_head;
  if (!config.has("layer_types")) config.fail("layer_types", "a list");
  read_layer_types(config, spec, config.require_int("sliding_window", 1));
  hold_windows(spec);
  const nn::RopeOptions options{
      .dimensions = spec.head_size,
      .max_positions = config.require_int("max_position_embeddings", 1)};
  const auto parameters = config.require_object("rope_parameters");
  std::map<bool, int> rope_of;  // of layers with a window and without
  for (auto& layer : spec.layers) {
    const bool windowed = layer.window_tokens > 0;
    if (!rope_of.contains(windowed)) {
      const auto own = parameters.require_object(windowed ? "sliding_attention"
                                                          : "full_attention");
      auto rope = options;
      rope.base = read_rope_theta(own, 0);
      rope_of[windowed] = static_cast<int>(spec.ropes.size());
      spec.ropes.push_back(nn::make_rope(rope, own));
    }
    layer.rope = rope_of[windowed];
  }
  auto experts = read_experts(config);
  experts.router.normalize = config.require_bool("norm_topk_prob");
  use_experts(spec, experts);
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec klear_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  spec.qk_norm = QkNorm::per_head;
  spec.ropes = {read_plain_rope(config, spec.head_size, 0)};
  if (config.require_int("num_experts", 0) > 0) {
    auto experts = read_experts(config);
    experts.shared_hidden_size =
        experts.hidden_size *
        config.require_int("n_shared_experts", 1, 1 << 10);
    experts.shared_gate = nn::SharedGate::mix;
    experts.shared_gate_bias = true;
    experts.router.score = nn::RouterScore::sigmoid;
    experts.router.normalize = config.require_bool("norm_topk_prob");
    experts.names.selection_bias = "expert_bias";
    experts.names.stack = "experts";
    experts.names.shared_gate = "coefficient";
    use_experts(spec, experts);
  }
  keep_dense_layers(config, spec);
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec phimoe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::from_width,
                         {.hidden_size = 4096,
                          .num_layers = 32,
                          .intermediate_size = 6400,
                          .num_heads = 32,
                          .vocabulary_size = 32064,
                          .eps = 1e-6,
                          .num_kv_heads = 8});
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.bias = true;
  spec.qkv_bias = spec.o_bias = spec.head_bias = true;
  spec.names.mlp = "block_sparse_moe";
  const double theta = read_rope_theta(config, 10000);
  const int max_positions =
      config.get_int("max_position_embeddings", 131072, 1);
  const int original =
      config.get_int("original_max_position_embeddings", 4096, 2);
  const auto scaling = find_rope_scaling(config);
  spec.ropes = {
      scaling ? nn::Rope::long_rope(
                    {.dimensions = spec.head_size,
                     .base = theta,
                     .max_positions = max_positions,
                     .original_max_positions = original,
                     .long_factors =
                         nn::read_long_factors(*scaling, spec.head_size),
                     .input_scale = scaling->find_float("long_mscale")})
              : nn::make_rope({.dimensions = spec.head_size, .base = theta},
                              std::nullopt)};
  ExpertsSpec experts;
  experts.num_experts = config.get_int("num_local_experts", 16, 1, 1 << 14);
  experts.hidden_size = spec.intermediate_size;
  experts.router.score = nn::RouterScore::sparse_mixer;
  experts.router.num_chosen =
      config.get_int("num_experts_per_tok", 2, 1, experts.num_experts);
  experts.router.jitter =
      static_cast<float>(config.get_float("router_jitter_noise", 0.01));
  use_experts(spec, experts);
  stack_layers(checkpoint, spec, kNumberedParts);
  return spec;
}

}  // namespace mlxlm
