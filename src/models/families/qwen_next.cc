// qwen3_next, qwen3_5, qwen3_5_moe: gated delta networks among layers of gated
// attention.
#include <algorithm>

#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

constexpr int kMaxSize = 1 << 14;

// linear_num_value_heads and the like; a default of 0: required.
DeltaNetSpec read_delta_net(const ConfigReader& config, DeltaNetSpec spec) {
  auto read = [&](const char* key, int fallback) {
    return fallback == 0 ? config.require_int(key, 1, kMaxSize)
                         : config.get_int(key, fallback, 1, kMaxSize);
  };
  spec.num_heads = read("linear_num_value_heads", spec.num_heads);
  spec.num_key_heads = read("linear_num_key_heads", spec.num_key_heads);
  spec.key_size = read("linear_key_head_dim", spec.key_size);
  spec.value_size = read("linear_value_head_dim", spec.value_size);
  spec.num_taps = read("linear_conv_kernel_dim", spec.num_taps);
  if (spec.num_heads % spec.num_key_heads != 0) {
    config.fail("linear_num_key_heads",
                "a divisor of linear_num_value_heads = " +
                    std::to_string(spec.num_heads));
  }
  if (spec.num_taps < 2) {
    config.fail("linear_conv_kernel_dim", "an integer of at least 2");
  }
  return spec;
}

// As published by transformers: convolutions lie the other way there, and norms
// lack the 1 that they multiply by.
bool is_transformers_layout(const Checkpoint& checkpoint) {
  return std::ranges::any_of(checkpoint.weights, [](const auto& entry) {
    return entry.first.ends_with("conv1d.weight") && entry.second.ndim() == 3 &&
           entry.second.shape(-1) != 1;
  });
}

// What qwen3_next and qwen3_5 have in common.
void set_hybrid(const ConfigReader& config,
                DeltaNetSpec delta_net,
                Checkpoint& checkpoint,
                ArchSpec& spec) {
  drop_weights(checkpoint, [](std::string_view name) {
    return name.find("mtp.") != std::string_view::npos;  // predicts further on
  });
  delta_net.norm_eps = spec.norm.eps;
  spec.mixers = {read_delta_net(config, delta_net)};
  if (is_transformers_layout(checkpoint)) spec.norm.weight_offset = 1;
  spec.qk_norm = QkNorm::per_head;
  spec.output_gate = OutputGate::in_queries;
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  const int interval = config.get_int("full_attention_interval", 4, 1);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if ((i + 1) % interval != 0) spec.layers[i].mixer = 0;
  }
  spec.own_caches = true;
}

void use_hybrid_experts(const ConfigReader& config,
                        bool normalize,
                        ArchSpec& spec) {
  auto experts = read_experts(config);
  experts.router.normalize = config.get_bool("norm_topk_prob", normalize);
  read_gated_shared_expert(config, experts);
  use_experts(spec, experts);
}

nn::Rope read_qwen3_5_rope(const ConfigReader& config, int head_size) {
  auto parameters = config.find_object("rope_parameters");
  double share = config.get_float("partial_rotary_factor", 0.25);
  double theta = config.get_float("rope_theta", 100000);
  auto scaling = config.find_object("rope_scaling");
  if (parameters && !parameters->raw().empty()) {
    share = parameters->get_float("partial_rotary_factor", 0.25);
    theta = parameters->get_float("rope_theta", 100000);
    scaling = parameters;
  }
  if (theta <= 0) config.fail("rope_theta", "a positive number");
  return nn::make_rope(
      {.dimensions = rotated_dimensions(config, head_size, share),
       .base = theta,
       .max_positions = config.get_int("max_position_embeddings", 131072, 1)},
      scaling);
}

ArchSpec qwen3_5_text_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 4096,
                          .num_layers = 32,
                          .intermediate_size = 14336,
                          .num_heads = 32,
                          .vocabulary_size = 151936,
                          .eps = 1e-6,
                          .num_kv_heads = 8});
  set_hybrid(config,
             {.num_heads = 64,
              .num_key_heads = 16,
              .key_size = 192,
              .value_size = 128,
              .num_taps = 4},
             checkpoint,
             spec);
  if (config.get_int("num_experts", 0, 0) > 0) {
    use_hybrid_experts(config, true, spec);
  }
  stack_layers(checkpoint, spec);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto mlp = spec.layer_path(i) + "mlp.";
    split_joined_experts(checkpoint, mlp + "experts", mlp + "switch_mlp", {});
  }
  spec.ropes = {read_qwen3_5_rope(config, spec.head_size)};
  if (spec.context_tokens == 0) spec.context_tokens = 131072;
  return spec;
}

}  // namespace

ArchSpec qwen3_next_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  set_hybrid(
      config, {.qkvz = "in_proj_qkvz", .ba = "in_proj_ba"}, checkpoint, spec);
  const double share = config.require_float("partial_rotary_factor");
  spec.ropes = {
      read_scaled_rope(config,
                       rotated_dimensions(config, spec.head_size, share),
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1))};
  if (config.require_int("num_experts", 0) > 0) {
    use_hybrid_experts(config, false, spec);
    keep_dense_layers(config, spec);
  }
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec qwen3_5_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  return text_half_spec(
      text_config_or_all(config), checkpoint, qwen3_5_text_spec);
}

}  // namespace mlxlm
