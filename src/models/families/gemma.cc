// gemma, gemma2, gemma3 (text alone, or within the vision model).
#include <cmath>

#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/family.h"
#include "models/text_half.h"

namespace mlxlm {
namespace {

void set_gemma(ArchSpec& spec) {
  spec.norm.weight_offset = 1;
  spec.activation = kernels::Activation::gelu_tanh;
  spec.tied_head = true;
  spec.embedding_scale =
      static_cast<float>(std::sqrt(double(spec.hidden_size)));
}

ArchSpec gemma_like(const ConfigReader& config) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  set_gemma(spec);
  spec.ropes = {read_plain_rope(config,
                                spec.head_size,
                                10000,
                                config.get_bool("rope_traditional", false))};
  return spec;
}

float scale_of_scalar(const ConfigReader& config, double fallback) {
  const double scalar = config.get_float("query_pre_attn_scalar", fallback);
  if (scalar <= 0) config.fail("query_pre_attn_scalar", "a positive number");
  return static_cast<float>(std::pow(scalar, -0.5));
}

float read_softcap(const ConfigReader& config, const char* key, double value) {
  const double cap = config.get_float(key, value);
  if (cap <= 0) config.fail(key, "a positive number");
  return static_cast<float>(cap);
}

}  // namespace

ArchSpec gemma_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = gemma_like(config);
  spec.activation = kernels::Activation::gelu;
  return spec;
}

ArchSpec gemma2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = gemma_like(config);
  add_output_norms(spec);
  spec.attention_scale = scale_of_scalar(config, 144);
  spec.attention_softcap = read_softcap(config, "attn_logit_softcapping", 50);
  spec.logit_softcap = read_softcap(config, "final_logit_softcapping", 30);
  return spec;
}

ArchSpec gemma3_text_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 1152,
                          .num_layers = 26,
                          .intermediate_size = 6912,
                          .num_heads = 4,
                          .vocabulary_size = 262144,
                          .eps = 1e-6,
                          .num_kv_heads = 1,
                          .head_size = 256});
  set_gemma(spec);
  add_output_norms(spec);
  spec.qk_norm = QkNorm::per_head;
  // The configuration doesn't say whether the head is tied.
  spec.tied_head = !checkpoint.weights.contains("lm_head.weight");
  // The reference rounds this factor to bfloat16.
  spec.embedding_scale =
      static_cast<float>(mx::bfloat16_t(spec.embedding_scale));
  spec.attention_scale = scale_of_scalar(config, 256);

  spec.ropes = {
      nn::make_rope({.dimensions = spec.head_size,
                     .base = read_rope_theta(config, 1e6),
                     .max_positions =
                         config.get_int("max_position_embeddings", 32768, 1)},
                    config.find_object("rope_scaling")),
      nn::make_rope({.dimensions = spec.head_size,
                     .base = config.get_float("rope_local_base_freq", 10000)},
                    std::nullopt)};
  set_window_pattern(spec,
                     config.get_int("sliding_window", 512, 1),
                     config.get_int("sliding_window_pattern", 6, 1));
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 1 : 0;
  return spec;
}

ArchSpec gemma3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  const auto text = config.require_object("text_config");
  auto values = text.raw();
  values["vocab_size"] = config.get_int("vocab_size", 262208, 1);
  if (!values.contains("num_attention_heads")) {
    values["num_attention_heads"] = 8;
  }
  if (!values.contains("num_key_value_heads")) {
    values["num_key_value_heads"] = 4;
  }
  return text_half_spec(text.with_values(values), checkpoint, gemma3_text_spec);
}

}  // namespace mlxlm
