// plamo, plamo2 (Mamba-2 among attention), plamo3.
#include <algorithm>
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

// Of plamo2 and plamo3, which has head_dim.
constexpr FieldDefaults kSizes{.hidden_size = 4096,
                               .num_layers = 32,
                               .intermediate_size = 13312,
                               .num_heads = 32,
                               .vocabulary_size = 32000,
                               .eps = 1e-6,
                               .num_kv_heads = 4,
                               .head_size = 128};

// Names and norms of plamo2 and plamo3: the model's own, the final one among
// them, multiply by 1 + weight, those of what parts add by less.
void set_plamo_layers(ArchSpec& spec) {
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
}

// Of every mamba_step layers the middle one attends.
void read_mamba_step(const ConfigReader& config, ArchSpec& spec) {
  const int step = config.get_int("mamba_step", 2, 2);
  const int num_layers = static_cast<int>(spec.layers.size());
  if (!config.get_bool("mamba_enabled", true)) return;
  for (int i = 0; i < num_layers; ++i) {
    const bool attends =
        num_layers <= step / 2 ? i == num_layers - 1 : i % step == step / 2;
    if (!attends) spec.layers[i].mixer = 0;
  }
}

}  // namespace

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

ArchSpec plamo2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec =
      read_sizes(config, KvHeads::required, HeadSize::from_width, kSizes);
  spec.head_size = config.get_int("hidden_size_per_head", 128, 2, 1 << 14);
  spec.attention_scale =
      static_cast<float>(std::pow(double(spec.head_size), -0.5));
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  set_plamo_layers(spec);
  spec.qk_norm = QkNorm::each_head;
  spec.qk_norm_spec = NormSpec{.eps = 1e-6f};
  spec.names.q_norm = "q_weight";
  spec.names.k_norm = "k_weight";
  spec.ropes = {nn::make_rope({.dimensions = spec.head_size}, std::nullopt)};
  // Attention sees all tokens, whatever attention_window_size says and
  // full_attention_idx exempts from it: as in the reference.
  config.get_int("attention_window_size", 2048, 1);
  config.find_ints("full_attention_idx");
  config.get_int("mamba_chunk_size", 256, 1);  // how transformers computes it
  spec.mixers = {
      Mamba2Spec{.num_heads = config.get_int("mamba_num_heads", 64, 1, 1 << 14),
                 .head_size = spec.head_size,
                 .state_size = config.get_int("mamba_d_state", 64, 1, 1 << 14),
                 .num_taps = config.get_int("mamba_d_conv", 4, 2, 1 << 10),
                 .conv_bias = false,
                 .min_step = 0.001f,
                 .max_step = 100.0f,
                 .norm = false,
                 .norm_eps = spec.norm.eps,
                 .select_rank = std::max(64, spec.hidden_size / 16)}};
  read_mamba_step(config, spec);
  spec.own_caches = true;
  if (spec.context_tokens == 0) spec.context_tokens = 2048;
  return spec;
}

ArchSpec plamo3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional, kSizes);
  require_text(config, "linear_type", "normal");
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  set_plamo_layers(spec);
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
