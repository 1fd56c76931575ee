// falcon_h1: Mamba-2 and attention side by side in every layer.
#include <cmath>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

float read_factor(const ConfigReader& config, const char* key, double value) {
  return static_cast<float>(config.get_float(key, value));
}

std::vector<double> read_factors(const ConfigReader& config,
                                 const char* key,
                                 const std::vector<double>& values) {
  auto factors = config.find_floats(key).value_or(values);
  if (factors.size() != values.size()) {
    config.fail(key, "a list of " + std::to_string(values.size()) + " numbers");
  }
  return factors;
}

// The layer's weights times `factor`, a number or one for each row.
void scale(Checkpoint& checkpoint,
           const std::string& path,
           const mx::array& factor) {
  auto multiply = [&](const std::string& tensor) {
    auto found = checkpoint.weights.find(path + tensor);
    if (found == checkpoint.weights.end()) return;
    auto& value = found->second;
    value = mx::astype(mx::multiply(mx::astype(value, mx::float32), factor),
                       value.dtype());
  };
  auto quantized = checkpoint.quantized.find(path);
  if (quantized == checkpoint.quantized.end()) return multiply(".weight");
  if (quantized->second.mode != "affine") {
    throw Error(ErrorKind::unsupported,
                path +
                    ": falcon_h1's multipliers can't be applied to weights "
                    "quantized as " +
                    quantized->second.mode);
  }
  multiply(".scales");
  multiply(".biases");
}

void scale(Checkpoint& checkpoint, const std::string& path, float factor) {
  if (factor != 1.0f) scale(checkpoint, path, mx::array(factor));
}

// The factors of the rows of in_proj: gate, x, B, C and step.
mx::array in_factors(const ConfigReader& config, const Mamba2Spec& mamba) {
  const auto factors = read_factors(
      config,
      "ssm_multipliers",
      {0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738});
  const int inner = mamba.num_heads * mamba.head_size;
  const int keys = mamba.num_groups * mamba.state_size;
  const int sizes[] = {inner, inner, keys, keys, mamba.num_heads};
  const float all = read_factor(config, "ssm_in_multiplier", 1.25);
  std::vector<mx::array> rows;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const auto factor = all * static_cast<float>(factors[i]);
    rows.push_back(mx::full({sizes[i], 1}, factor, mx::float32));
  }
  return mx::concatenate(rows, 0);
}

// Checkpoints of transformers keep the multipliers apart; the reference folds
// them into the weights when it converts one, but for those of the keys and of
// what the values are made from.
void apply_multipliers(const ConfigReader& config,
                       const Mamba2Spec& mamba,
                       Checkpoint& checkpoint,
                       ArchSpec& spec) {
  const auto conv =
      checkpoint.weights.find("model.layers.0.mamba.conv1d.weight");
  const bool folded = conv == checkpoint.weights.end() ||
                      conv->second.ndim() != 3 || conv->second.shape(1) != 1;
  const float embedding =
      read_factor(config, "embedding_multiplier", 5.656854249492381);
  const float head = read_factor(config, "lm_head_multiplier", 0.0390625);
  const float input = read_factor(config, "attention_in_multiplier", 1);
  const float key = read_factor(config, "key_multiplier", 0.390625);
  const float output = read_factor(config, "attention_out_multiplier", 0.9375);
  const float ssm_output =
      read_factor(config, "ssm_out_multiplier", 0.23570226039551587);
  const auto mlp =
      read_factors(config, "mlp_multipliers", {0.8838834764831844, 0.5859375});
  const auto in_rows = in_factors(config, mamba);
  if (!folded) {
    spec.embedding_scale = embedding;
    spec.logit_scale = head;
  } else if (spec.tied_head) {
    spec.logit_scale = head / embedding;
  }
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto path = spec.layer_path(i);
    scale(checkpoint, path + "self_attn.k_proj", key);
    scale(checkpoint, path + "self_attn.v_proj", input);
    if (folded) continue;
    scale(checkpoint, path + "self_attn.q_proj", input);
    scale(checkpoint, path + "self_attn.k_proj", input);
    scale(checkpoint, path + "self_attn.o_proj", output);
    scale(checkpoint, path + "mamba.in_proj", in_rows);
    scale(checkpoint, path + "mamba.out_proj", ssm_output);
    scale(checkpoint,
          path + "feed_forward.gate_proj",
          static_cast<float>(mlp[0]));
    scale(checkpoint,
          path + "feed_forward.down_proj",
          static_cast<float>(mlp[1]));
  }
}

Mamba2Spec read_mamba(const ConfigReader& config, float eps) {
  auto size = [&](const char* key, int fallback) {
    return config.get_int(key, fallback, 1, 1 << 14);
  };
  Mamba2Spec mamba{
      .name = "mamba",
      .num_heads = size("mamba_n_heads", 24),
      .head_size = size("mamba_d_head", 64),
      .state_size = size("mamba_d_state", 128),
      .num_groups = size("mamba_n_groups", 1),
      .num_taps = config.get_int("mamba_d_conv", 4, 2, 1 << 10),
      .in_bias = config.get_bool("mamba_proj_bias", false),
      .out_bias = config.get_bool("projectors_bias", false),
      .conv_bias = config.get_bool("mamba_conv_bias", true),
      .norm = config.get_bool("mamba_rms_norm", false),
      .norm_before_gate = config.get_bool("mamba_norm_before_gate", false),
      .norm_eps = eps};
  if (mamba.num_heads % mamba.num_groups != 0) {
    config.fail("mamba_n_groups", "a divisor of mamba_n_heads");
  }
  const int inner = mamba.num_heads * mamba.head_size;
  if (size("mamba_d_ssm", 1536) != inner) {
    config.fail("mamba_d_ssm",
                "mamba_n_heads * mamba_d_head = " + std::to_string(inner));
  }
  return mamba;
}

}  // namespace

ArchSpec falcon_h1_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 1024,
                          .num_layers = 36,
                          .intermediate_size = 2048,
                          .num_heads = 8,
                          .vocabulary_size = 32784,
                          .eps = 1e-5,
                          .num_kv_heads = 2,
                          .head_size = 64});
  require_true(config, "mamba_use_mlp");
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.norm_name = "final_layernorm";
  spec.names.mlp = "feed_forward";
  spec.names.mlp_norm = "pre_ff_layernorm";
  read_biases(config, spec);
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          1e11,
                          false,
                          config.get_int("max_position_embeddings", 131072))};
  const auto mamba = read_mamba(config, spec.norm.eps);
  // How transformers trains and computes it; sizes are given as they are.
  config.get_float("initializer_range", 0.02);
  config.get_int("mamba_chunk_size", 128, 1);
  config.get_int("mamba_expand", 2, 1);
  config.get_int("mlp_expansion_factor", 8, 1);
  spec.mixers = {mamba, SideBySideSpec{{0, kAttention}}};
  for (auto& layer : spec.layers) layer.mixer = 1;
  apply_multipliers(config, mamba, checkpoint, spec);
  spec.own_caches = true;
  return spec;
}

}  // namespace mlxlm
