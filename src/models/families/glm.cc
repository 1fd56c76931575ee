// glm, glm4.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec glm_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = config.get_bool("attention_bias", false);
  spec.names.gate_up = "gate_up_proj";
  spec.ropes = {read_plain_rope(config, spec.head_size, 10000, true)};
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
  spec.ropes = {read_plain_rope(
      config, dimensions, 0, config.get_bool("rope_traditional", true))};
  if (spec.context_tokens == 0) spec.context_tokens = 32768;
  return spec;
}

}  // namespace mlxlm
