// Architectures that differ from llama in a few places each: granite, olmo2,
// cohere2, glm4, starcoder2.
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec granite_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  spec.mlp_bias = config.require_bool("mlp_bias");
  const double logits_scaling = config.require_float("logits_scaling");
  if (logits_scaling == 0) {
    config.fail("logits_scaling", "a number other than 0");
  }
  auto factor = [&](const char* key) {
    return static_cast<float>(config.require_float(key));
  };
  spec.logit_scale = static_cast<float>(1 / logits_scaling);
  spec.attention_scale = factor("attention_multiplier");
  spec.embedding_scale = factor("embedding_multiplier");
  spec.residual_scale = factor("residual_multiplier");
  spec.ropes = {nn::make_rope(
      {.dimensions = spec.head_size,
       .base = read_rope_theta(config, 0),
       .max_positions = config.require_int("max_position_embeddings", 1)},
      find_rope_scaling(config))};
  return spec;
}

ArchSpec olmo2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.mlp_bias = config.get_bool("mlp_bias", false);
  spec.qk_norm = QkNorm::over_heads;
  spec.names.attention_norm = "";
  spec.names.attention_output_norm = "post_attention_layernorm";
  spec.names.mlp_norm = "";
  spec.names.mlp_output_norm = "post_feedforward_layernorm";
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.find_int("max_position_embeddings"))};
  return spec;
}

ArchSpec cohere2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 4096,
                          .num_layers = 32,
                          .intermediate_size = 14336,
                          .num_heads = 32,
                          .vocabulary_size = 256000,
                          .eps_name = "layer_norm_eps",
                          .eps = 1e-5,
                          .num_kv_heads = 8,
                          .head_size = 128});
  if (spec.head_size * spec.num_heads != spec.hidden_size) {
    config.fail("head_dim", "hidden_size over num_attention_heads");
  }
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.bias = config.get_bool("layer_norm_bias", false);
  spec.parallel = true;
  spec.names.mlp_norm = "";
  spec.tied_head = true;
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.logit_scale =
      static_cast<float>(config.get_float("logit_scale", 0.0625));
  spec.ropes = {nn::make_rope({.dimensions = spec.head_size,
                               .base = read_rope_theta(config, 50000),
                               .traditional = true},
                              std::nullopt)};
  set_window_pattern(spec,
                     config.get_int("sliding_window", 4096, 1),
                     config.get_int("sliding_window_pattern", 4, 1));
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 0 : -1;
  spec.own_caches = true;
  return spec;
}

ArchSpec glm4_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.qkv_bias = config.require_bool("attention_bias");
  spec.names.gate_up = "gate_up_proj";
  spec.names.attention_output_norm = "post_self_attn_layernorm";
  spec.names.mlp_output_norm = "post_mlp_layernorm";
  const int dimensions = rotated_dimensions(
      config, spec.head_size, config.require_float("partial_rotary_factor"));
  spec.ropes = {
      nn::make_rope({.dimensions = dimensions,
                     .base = read_rope_theta(config, 0),
                     .traditional = config.get_bool("rope_traditional", true)},
                    std::nullopt)};
  if (spec.context_tokens == 0) spec.context_tokens = 32768;
  return spec;
}

ArchSpec starcoder2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(
      config,
      KvHeads::required,
      HeadSize::from_width,
      {.vocabulary_size = 49152, .eps_name = "norm_epsilon", .eps = 1e-5});
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.bias = true;
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = spec.mlp_bias = true;
  spec.gated_mlp = false;
  spec.names.up = "c_fc";
  spec.names.down = "c_proj";
  spec.activation = kernels::Activation::gelu;
  spec.ropes = {nn::make_rope(
      {.dimensions = spec.head_size, .base = read_rope_theta(config, 100000)},
      std::nullopt)};
  return spec;
}

}  // namespace mlxlm
