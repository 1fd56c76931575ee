// phi, phi3: partial rotary positions; phi3small: attention to blocks.
#include <algorithm>

#include <mlxlm/error.h>

#include "core/log.h"
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

nn::Rope phi3_rope(const ConfigReader& config, int dimensions) {
  nn::RopeOptions options{
      .dimensions = dimensions,
      .base = read_rope_theta(config, 10000),
      .traditional = config.get_bool("rope_traditional", false)};
  const int max_positions =
      config.get_int("max_position_embeddings", 131072, 1);
  const int original =
      config.get_int("original_max_position_embeddings", 4096, 2);
  const auto scaling = find_rope_scaling(config);
  if (!scaling) return nn::make_rope(options, std::nullopt);
  const auto type = nn::rope_type(*scaling);
  if (type == "longrope" || type == "su") {
    return nn::Rope::long_rope(
        {.dimensions = dimensions,
         .base = options.base,
         .max_positions = max_positions,
         .original_max_positions = original,
         .long_factors = nn::read_long_factors(*scaling, dimensions)});
  }
  if (type == "linear") return nn::make_rope(options, scaling);
  if (type != "default") {
    log_warning("phi3: rope_scaling of type " + type +
                " is ignored; linear, su and longrope are known");
  }
  return nn::make_rope(options, std::nullopt);
}

}  // namespace

ArchSpec phi_spec(const ConfigReader& config, Checkpoint&) {
  // Null stands for as many as there are heads, as in the reference.
  const bool given_as_null = config.raw().contains("num_key_value_heads");
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.hidden_size = 2560,
                          .num_layers = 32,
                          .intermediate_size = 10240,
                          .num_heads = 32,
                          .vocabulary_size = 51200,
                          .eps_name = "layer_norm_eps",
                          .eps = 1e-5,
                          .num_kv_heads = given_as_null ? 0 : 32});
  use_layer_norm(spec);
  spec.norm_name = "final_layernorm";
  spec.names.o = "dense";
  spec.names.mlp_norm = "";
  spec.names.up = "fc1";
  spec.names.down = "fc2";
  spec.parallel = true;
  spec.gated_mlp = false;
  spec.activation = kernels::Activation::gelu_tanh;
  spec.qkv_bias = spec.o_bias = spec.mlp_bias = spec.head_bias = true;
  const double share = config.get_float("partial_rotary_factor", 0.4);
  spec.ropes = {read_plain_rope(
      config, rotated_dimensions(config, spec.head_size, share), 10000)};
  if (spec.context_tokens == 0) spec.context_tokens = 2048;
  return spec;
}

ArchSpec phi3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.names.qkv = "qkv_proj";
  spec.names.gate_up = "gate_up_proj";
  const double share = config.get_float("partial_rotary_factor", 1.0);
  spec.ropes = {
      phi3_rope(config, rotated_dimensions(config, spec.head_size, share))};
  if (spec.context_tokens == 0) spec.context_tokens = 131072;
  return spec;
}

ArchSpec phi3small_spec(const ConfigReader& config, Checkpoint&) {
  auto spec =
      read_sizes(config,
                 KvHeads::required,
                 HeadSize::from_width,
                 {.eps_name = "layer_norm_epsilon",
                  .names = {.intermediate_size = "ff_intermediate_size"}});
  use_layer_norm(spec);
  spec.tied_head = true;
  spec.norm_name = "final_layernorm";
  spec.qkv_bias = spec.o_bias = spec.mlp_bias = true;
  spec.qkv_layout = QkvLayout::by_key_head;
  spec.names.qkv = "query_key_value";
  spec.names.o = "dense";
  spec.names.gate_up = "up_proj";
  spec.interleaved_gate = true;
  spec.activation = kernels::Activation::gelu_fast;
  auto factor = [&](const char* key, double fallback) {
    return static_cast<float>(config.get_float(key, fallback));
  };
  const float attention = factor("mup_attn_multiplier", 1);
  if (config.get_bool("mup_use_scaling", true)) {
    spec.attention_scale = attention / static_cast<float>(spec.head_size);
  }
  // 0 turns these two off.
  const float embedding = factor("mup_embedding_multiplier", 10);
  const float width = factor("mup_width_multiplier", 8);
  if (embedding != 0) spec.embedding_scale = embedding;
  if (width != 0) spec.logit_scale = 1 / width;

  const double theta = config.get_float("rope_embedding_base", 1e6);
  if (theta <= 0) config.fail("rope_embedding_base", "over 0");
  spec.ropes = {
      nn::Rope(kernels::Rope{.dimensions = spec.head_size,
                             .base = static_cast<float>(theta),
                             .scale = factor("rope_position_scale", 1)})};

  const nn::BlockPattern blocks{
      .block_tokens = config.get_int("blocksparse_block_size", 64, 32, 64),
      .num_local_blocks =
          config.get_int("blocksparse_num_local_blocks", 16, 1, 1 << 16),
      .stride = config.get_int("blocksparse_vert_stride", 8, 1)};
  if (blocks.block_tokens != 32 && blocks.block_tokens != 64) {
    config.fail("blocksparse_block_size", "32 or 64");
  }
  const auto limit = static_cast<float>(config.require_float("gegelu_limit"));
  if (!(limit > 0)) config.fail("gegelu_limit", "over 0");
  const int period = config.require_int("dense_attention_every_n_layers", 1);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    layer.clamp = {.gate_max = limit, .up_limit = limit, .up_offset = 1};
    if (i % period == 0) layer.blocks = blocks;
  }
  // Not in use, and not trained, in the published vocabulary.
  for (int id : {100256, 100258, 100259, 100260, 100264, 100265}) {
    if (id < spec.vocabulary_size) spec.hidden_tokens.push_back(id);
  }
  for (int id = 100267; id < std::min(100352, spec.vocabulary_size); ++id) {
    spec.hidden_tokens.push_back(id);
  }
  return spec;
}

}  // namespace mlxlm
