// Architectures that differ from llama in a few places each: apertus, granite,
// lille-130m, minicpm, nanochat, stablelm, starcoder2.
#include <algorithm>
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {

ArchSpec apertus_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.mlp_bias = config.require_bool("mlp_bias");
  require_false(config, "attention_bias");
  require_false(config, "post_norm");
  require_true(config, "qk_norm");
  spec.qk_norm = QkNorm::per_head;
  spec.gated_mlp = false;
  spec.names.attention_norm = "attention_layernorm";
  spec.names.mlp_norm = "feedforward_layernorm";
  spec.names.mlp_activation = "act_fn";
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          0,
                          false,
                          config.require_int("max_position_embeddings", 1))};
  apply_rules(checkpoint, {{WeightRule::Action::squeeze, "*.act_fn.*"}});
  return spec;
}

ArchSpec granite_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  spec.mlp_bias = config.get_bool("mlp_bias", false);
  read_granite_factors(config, spec);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1))};
  return spec;
}

ArchSpec lille_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::from_width,
                         {.eps_name = "layer_norm_eps",
                          .names = {.hidden_size = "n_embd",
                                    .num_layers = "n_layer",
                                    .intermediate_size = nullptr,
                                    .num_heads = "n_head",
                                    .num_kv_heads = "n_kv_heads",
                                    .context_tokens = "block_size"}});
  // Halves go to the even side, as in Python.
  spec.intermediate_size = std::max(
      256,
      256 * static_cast<int>(std::nearbyint(8 * spec.hidden_size / 3 / 256.0)));
  require_true(config, "tie_word_embeddings");
  spec.tied_head = true;
  spec.prefix = "transformer.";
  spec.embedding_name = "tok_embeddings";
  spec.names.attention = "attention";
  spec.names.qkv = "qkv_proj";
  spec.names.o = "out_proj";
  spec.names.attention_norm = "attention.norm";
  spec.names.mlp = "feed_forward";
  spec.names.mlp_norm = "feed_forward.norm";
  spec.ropes = {read_plain_rope(config, spec.head_size, 0, true)};
  apply_rules(checkpoint, {{WeightRule::Action::drop, "*rotary_emb*"}});
  return spec;
}

ArchSpec minicpm_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  // A checkpoint without a head of its own ties it.
  spec.tied_head = config.get_bool("tie_word_embeddings", false) ||
                   !checkpoint.weights.contains("lm_head.weight");
  spec.embedding_scale = static_cast<float>(config.require_float("scale_emb"));
  spec.residual_scale =
      static_cast<float>(config.require_float("scale_depth") /
                         std::sqrt(double(spec.layers.size())));
  const int base = config.require_int("dim_model_base");
  spec.logit_scale =
      static_cast<float>(base / static_cast<double>(spec.hidden_size));
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          1e6,
                          false,
                          config.find_int("max_position_embeddings"))};
  return spec;
}

ArchSpec nanochat_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::from_width,
                         {.hidden_size = 1280,
                          .num_layers = 20,
                          .intermediate_size = 5120,
                          .num_heads = 10,
                          .vocabulary_size = 65536,
                          .eps_name = nullptr,
                          .eps = 1e-5,
                          .num_kv_heads = 10});
  if (spec.context_tokens == 0) spec.context_tokens = 2048;
  use_gpt_names(spec);
  spec.names.q = "c_q";
  spec.names.k = "c_k";
  spec.names.v = "c_v";
  spec.names.o = "c_proj";
  spec.names.up = "c_fc";
  spec.names.down = "c_proj";
  spec.norm.weight = false;
  spec.embedding_norm = spec.norm;
  spec.qk_norm = QkNorm::per_head;
  spec.qk_norm_after_rope = true;
  spec.gated_mlp = false;
  spec.activation = kernels::Activation::relu_squared;
  spec.logit_softcap = 15;
  spec.ropes = {read_plain_rope(config, spec.head_size, 10000).reversed()};
  return spec;
}

ArchSpec stablelm_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::from_width,
                         {.eps_name = "layer_norm_eps"});
  use_layer_norm(spec);
  spec.qkv_bias = config.require_bool("use_qkv_bias");
  spec.parallel = config.get_bool("use_parallel_residual", false);
  if (spec.parallel) spec.names.mlp_norm = "";
  if (config.get_bool("qk_layernorm", false)) spec.qk_norm = QkNorm::each_head;
  spec.names.q_norm = "q_layernorm";
  spec.names.k_norm = "k_layernorm";
  const double share = config.require_float("partial_rotary_factor");
  spec.ropes = {read_plain_rope(
      config, rotated_dimensions(config, spec.head_size, share), 0)};
  return spec;
}

ArchSpec starcoder2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(
      config,
      KvHeads::required,
      HeadSize::from_width,
      {.vocabulary_size = 49152, .eps_name = "norm_epsilon", .eps = 1e-5});
  use_layer_norm(spec);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = spec.mlp_bias = true;
  spec.gated_mlp = false;
  spec.names.up = "c_fc";
  spec.names.down = "c_proj";
  spec.activation = kernels::Activation::gelu;
  spec.ropes = {read_plain_rope(config, spec.head_size, 100000)};
  return spec;
}

}  // namespace mlxlm
