// plamo, plamo3.
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec plamo_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.names = {.num_kv_heads = nullptr}});
  const int shared = config.get_int("n_shared_head", 8, 1);
  if (spec.num_heads % shared != 0) {
    config.fail(
        "n_shared_head",
        "a divisor of num_attention_heads = " + std::to_string(spec.num_heads));
  }
  spec.num_kv_heads = spec.num_heads / shared;
  spec.alternating_heads = true;
  spec.layers_name = "layers.layers";
  spec.names.attention_norm = "norm";
  spec.names.mlp_norm = "";
  spec.parallel = true;
  spec.ropes = {read_plain_rope(config,
                                spec.head_size,
                                10000,
                                config.get_bool("rope_traditional", false))};
  return spec;
}

ArchSpec plamo3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 4096,
                          .num_layers = 32,
                          .intermediate_size = 13312,
                          .num_heads = 32,
                          .vocabulary_size = 32000,
                          .eps = 1e-6,
                          .num_kv_heads = 4,
                          .head_size = 128});
  require_text(config, "linear_type", "normal");
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.layers_name = "layers.layers";
  spec.names.attention = "mixer";
  spec.names.qkv = "qkv_proj";
  spec.names.gate_up = "gate_up_proj";
  spec.names.attention_norm = "pre_mixer_norm";
  spec.names.attention_output_norm = "post_mixer_norm";
  spec.names.mlp_norm = "pre_mlp_norm";
  spec.names.mlp_output_norm = "post_mlp_norm";
  auto norm_with = [&](double offset) {
    auto norm = spec.norm;
    norm.weight_offset = static_cast<float>(offset);
    return norm;
  };
  spec.attention_output_norm_spec = norm_with(1.0 / 5);
  spec.mlp_output_norm_spec = norm_with(1 / std::pow(5, 1.5));
  spec.norm.weight_offset = 1;
  spec.qk_norm = QkNorm::per_head;
  const double local_theta = config.get_float("rope_local_theta", 10000);
  if (local_theta <= 0) config.fail("rope_local_theta", "a positive number");
  spec.ropes = {
      read_plain_rope(config, spec.head_size, 1e6),
      nn::make_rope({.dimensions = spec.head_size, .base = local_theta},
                    std::nullopt)};
  const int window = config.get_int("window_size", 2048, 1);
  set_window_pattern(spec,
                     config.get_int("sliding_window", window, 1),
                     config.get_int("sliding_window_pattern", 8, 1));
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 1 : 0;
  if (spec.context_tokens == 0) spec.context_tokens = 2048;
  return spec;
}

}  // namespace mlxlm
