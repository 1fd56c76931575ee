// nemotron: LayerNorm by 1 + weight, squared ReLU, partial rotary positions;
// arcee: llama with its MLP.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

void use_squared_relu(const ConfigReader& config, ArchSpec& spec) {
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  read_biases(config, spec);
  spec.gated_mlp = false;
  spec.activation = kernels::Activation::relu_squared;
  require_text(config, "hidden_act", "relu2");
}

}  // namespace

// Method: transformers/models/arcee.
ArchSpec arcee_spec(const ConfigReader& config, Checkpoint&) {
  auto spec =
      read_sizes(config, KvHeads::as_heads, HeadSize::optional, {.eps = 1e-5});
  use_squared_relu(config, spec);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       10000,
                       false,
                       config.get_int("max_position_embeddings", 4096))};
  return spec;
}

ArchSpec nemotron_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(
      config, KvHeads::required, HeadSize::optional, {.eps_name = "norm_eps"});
  use_layer_norm(spec);
  spec.norm.weight_offset = 1;
  use_squared_relu(config, spec);
  require_false(config, "rope_traditional");
  const auto scaling = find_rope_scaling(config);
  if (scaling) {
    const auto type = nn::rope_type(*scaling);
    if (type != "linear" && type != "default") {
      scaling->fail("type", "linear");
    }
  }
  const double share = config.get_float("partial_rotary_factor", 0.5);
  spec.ropes = {nn::make_rope(
      {.dimensions = rotated_dimensions(config, spec.head_size, share),
       .base = read_rope_theta(config, 10000)},
      scaling)};
  return spec;
}

}  // namespace mlxlm
