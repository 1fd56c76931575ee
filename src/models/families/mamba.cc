// Recurrent models without attention: mamba, falcon_mamba, mamba2, rwkv7.
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

// A model of mixers alone, each behind a norm of the given name.
ArchSpec read_recurrent(const ConfigReader& config, FieldDefaults defaults) {
  defaults.num_heads = 1;
  auto spec =
      read_sizes(config, KvHeads::as_heads, HeadSize::from_width, defaults);
  for (auto& layer : spec.layers) {
    layer.mixer = 0;
    layer.mlp = false;
  }
  spec.own_caches = true;
  return spec;
}

void use_backbone_names(ArchSpec& spec) {
  spec.prefix = "backbone.";
  spec.embedding_name = "embeddings";
  spec.norm_name = "norm_f";
  spec.names.attention_norm = "norm";
}

}  // namespace

ArchSpec mamba_spec(const ConfigReader& config, Checkpoint&) {
  auto spec =
      read_recurrent(config, {.eps_name = "layer_norm_epsilon", .eps = 1e-5});
  use_backbone_names(spec);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  MambaSpec mixer{
      .inner_size = spec.intermediate_size,
      .state_size = config.require_int("state_size", 1, 1 << 14),
      .num_taps = config.require_int("conv_kernel", 2, 1 << 10),
      .step_rank = read_step_rank(config, "time_step_rank", spec.hidden_size),
      .bias = config.require_bool("use_bias"),
      .conv_bias = config.require_bool("use_conv_bias")};
  const bool normalizes = config.get_bool("use_bcdt_rms", false);
  const double eps = config.get_float("mixer_rms_eps", 1e-6);
  if (normalizes || config.require_string("model_type") == "falcon_mamba") {
    mixer.norm_eps = static_cast<float>(eps);
  }
  spec.mixers = {mixer};
  return spec;
}

ArchSpec mamba2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_recurrent(
      config, {.intermediate_size = 1, .eps_name = "layer_norm_epsilon"});
  use_backbone_names(spec);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  Mamba2Spec mixer;
  mixer.num_heads = config.require_int("num_heads", 1, 1 << 14);
  mixer.head_size = config.require_int("head_dim", 1, 1 << 14);
  mixer.num_groups = config.require_int("n_groups", 1, mixer.num_heads);
  const int state_size = config.require_int("state_size", 1, 1 << 14);
  mixer.state_size = config.get_int("ssm_state_size", state_size, 1, 1 << 14);
  mixer.num_taps = config.require_int("conv_kernel", 2, 1 << 10);
  mixer.in_bias = mixer.out_bias = config.require_bool("use_bias");
  mixer.conv_bias = config.require_bool("use_conv_bias");
  mixer.norm_eps = spec.norm.eps;
  spec.final_norm_spec = spec.norm;
  spec.norm.eps = 1e-5f;
  read_step_limit(config, "time_step_limit", mixer);
  if (mixer.num_heads % mixer.num_groups != 0) {
    config.fail("n_groups", "a divisor of num_heads");
  }
  spec.mixers = {mixer};
  return spec;
}

ArchSpec rwkv7_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_recurrent(config, {.eps_name = "norm_eps"});
  spec.embedding_name = "embeddings";
  spec.names.attention_norm = "";  // the mixer is the whole layer
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.bias = true;
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  auto rank = [&](const char* key) {
    return config.require_int(key, 1, 1 << 20);
  };
  const int head_size = config.require_int("head_dim", 1, 1 << 14);
  if (spec.hidden_size % head_size != 0) {
    config.fail(
        "head_dim",
        "a divisor of hidden_size = " + std::to_string(spec.hidden_size));
  }
  spec.mixers = {Rwkv7Spec{.head_size = head_size,
                           .value_rank = rank("v_low_rank_dim"),
                           .rate_rank = rank("a_low_rank_dim"),
                           .gate_rank = rank("gate_low_rank_dim"),
                           .decay_rank = rank("decay_low_rank_dim")}};
  return spec;
}

}  // namespace mlxlm
