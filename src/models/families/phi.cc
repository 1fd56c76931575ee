// phi, phi3: partial rotary positions.
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

}  // namespace mlxlm
