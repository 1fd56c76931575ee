// nemotron-nas: llama after a search for parts that can go. Each layer has
// attention with its own number of key heads, a linear layer instead, or none;
// likewise an MLP of its own size.
#include <cmath>

#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

enum class Part { none, linear, whole };

Part read_part(const ConfigReader& part) {
  // Published ones have these fields, without a value.
  for (const char* key : {"sparsify", "window_length", "num_sink_tokens"}) {
    if (part.has(key)) part.fail(key, "null; others aren't supported");
  }
  const bool none = part.get_bool("no_op", false);
  const bool linear = part.get_bool("replace_with_linear", false);
  return none ? Part::none : linear ? Part::linear : Part::whole;
}

// 2/3 of `factor` times the width, up to the next multiple of 256.
int mlp_size(const ConfigReader& ffn, int width) {
  const double factor = std::round(ffn.require_float("ffn_mult") * 1e6) / 1e6;
  const double size = std::trunc(2 * factor * width / 3);
  if (!(size >= 1) || size > 1 << 20) ffn.fail("ffn_mult", "a positive number");
  return (static_cast<int>(size) + 255) / 256 * 256;
}

// Index 0 of the mixers is the linear layer.
void set_block(const ConfigReader& block,
               const ArchSpec& spec,
               LayerSpec& layer) {
  const auto attention = block.require_object("attention");
  require_false(attention, "use_prefill_window_in_sink_attention");
  require_false(attention, "unshifted_sink");
  const auto kind = read_part(attention);
  if (kind == Part::whole) {
    const int group =
        attention.require_int("n_heads_in_group", 1, spec.num_heads);
    if (spec.num_heads % group != 0) {
      attention.fail("n_heads_in_group", "a divisor of num_attention_heads");
    }
    layer.num_kv_heads = spec.num_heads / group;
  } else {
    layer.mixer = kind == Part::linear ? 0 : kNoMixer;
  }
  const auto ffn = block.require_object("ffn");
  const auto mlp = read_part(ffn);
  layer.mlp = mlp != Part::none;
  layer.linear_mlp = mlp == Part::linear;
  if (mlp == Part::whole) {
    layer.intermediate_size = mlp_size(ffn, spec.hidden_size);
  }
}

kernels::Activation read_activation(const ConfigReader& config) {
  accept_only(
      config, "hidden_act", {"silu", "relu", "gelu", "gelu_new", "gelu_fast"});
  const auto name = config.get_string("hidden_act", "silu");
  if (name == "silu") return kernels::Activation::silu;
  if (name == "relu") return kernels::Activation::relu;
  return name == "gelu" ? kernels::Activation::gelu
                        : kernels::Activation::gelu_tanh;
}

}  // namespace

ArchSpec nemotron_nas_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(
      config,
      KvHeads::as_heads,
      HeadSize::from_width,
      {.hidden_size = 8192,
       .num_layers = 80,
       .num_heads = 64,
       .vocabulary_size = 128256,
       .eps = 1e-5,
       .names = {.intermediate_size = nullptr, .num_kv_heads = nullptr}});
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  read_biases(config, spec);
  spec.activation = read_activation(config);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       500000,
                       false,
                       config.get_int("max_position_embeddings", 131072, 1))};
  spec.mixers = {LinearMixerSpec{.bias = spec.qkv_bias}};
  spec.own_caches = true;
  const auto* blocks = config.find("block_configs");
  if (blocks == nullptr || !blocks->is_array() ||
      blocks->size() != spec.layers.size()) {
    config.fail("block_configs", "an object for each of num_hidden_layers");
  }
  for (std::size_t i = 0; i < blocks->size(); ++i) {
    const auto& block = (*blocks)[i];
    const auto name = "config.json: block_configs." + std::to_string(i);
    if (!block.is_object()) config.fail("block_configs", "a list of objects");
    set_block(ConfigReader(block, name), spec, spec.layers[i]);
  }
  return spec;
}

}  // namespace mlxlm
