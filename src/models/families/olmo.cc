// olmo, olmo2, olmo3.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec olmo_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.eps_name = nullptr,
                          .eps = 1e-5,
                          .names = {.hidden_size = "d_model",
                                    .num_layers = "n_layers",
                                    .intermediate_size = nullptr,
                                    .num_heads = "n_heads",
                                    .num_kv_heads = nullptr,
                                    .vocabulary_size = "embedding_size",
                                    .context_tokens = nullptr}});
  config.require_int("vocab_size");  // the embedding has more rows
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.weight = false;
  const int mlp_ratio = config.get_int("mlp_ratio", 4, 1, 1 << 10);
  // Of gate and up together.
  const int both = config.get_int(
      "mlp_hidden_size", mlp_ratio * spec.hidden_size, 2, 1 << 20);
  spec.intermediate_size = both / 2;
  spec.prefix = "model.transformer.";
  spec.embedding_name = "wte";
  spec.layers_name = "blocks";
  spec.head_name = spec.prefix + "ff_out";
  spec.names.attention = spec.names.mlp = "";
  spec.names.qkv = "att_proj";
  spec.names.o = "attn_out";
  spec.names.up_gate = "ff_proj";
  spec.names.down = "ff_out";
  spec.tied_head = config.get_bool("weight_tying", false);
  spec.ropes = {read_plain_rope(config,
                                spec.head_size,
                                10000,
                                config.get_bool("rope_traditional", false))};
  return spec;
}

ArchSpec olmo2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.mlp_bias = config.get_bool("mlp_bias", false);
  spec.qk_norm = QkNorm::over_heads;
  use_output_norms_only(spec);
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.find_int("max_position_embeddings"))};
  return spec;
}

ArchSpec olmo3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.qk_norm = QkNorm::over_heads;
  use_output_norms_only(spec);
  read_windows(config, spec, 4);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1)),
      read_plain_rope(config, spec.head_size, 0)};
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 1 : 0;
  return spec;
}

}  // namespace mlxlm
