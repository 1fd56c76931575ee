// gear: Gemma's layers, some of which mix near tokens by gated convolutions.
#include <cmath>

#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

kernels::Activation read_activation(const ConfigReader& config) {
  const char* key = "hidden_activation";
  accept_only(
      config,
      key,
      {"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu", "silu", "swish"});
  const auto name = config.get_string(key, "gelu_pytorch_tanh");
  if (name == "gelu") return kernels::Activation::gelu;
  if (name == "silu" || name == "swish") return kernels::Activation::silu;
  return kernels::Activation::gelu_tanh;
}

// Index 0 of the mixers is the convolution.
void set_gear_layers(const ConfigReader& config, ArchSpec& spec) {
  const int window = config.get_int("sliding_window", 512, 1);
  const auto types = config.find_strings("layer_types");
  if (!types) return;
  if (types->size() != spec.layers.size()) {
    config.fail("layer_types", "a type for each layer");
  }
  for (std::size_t i = 0; i < types->size(); ++i) {
    auto& layer = spec.layers[i];
    const auto& type = (*types)[i];
    if (type == "conv_mixer") {
      layer.mixer = 0;
    } else if (type == "sliding_attention") {
      layer.window_tokens = window;
      layer.rope = 1;
    } else if (type != "full_attention") {
      throw Error(ErrorKind::unsupported,
                  "config.json: layer type \"" + type +
                      "\" isn't supported; full_attention, sliding_attention "
                      "and conv_mixer are");
    }
  }
}

}  // namespace

ArchSpec gear_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::required);
  require_false(config, "use_bidirectional_attention");
  config.find_float("attention_dropout");  // of training
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.activation = read_activation(config);
  spec.norm.weight_offset = 1;
  spec.qk_norm = QkNorm::per_head;
  add_output_norms(spec);
  spec.embedding_scale = std::sqrt(static_cast<float>(spec.hidden_size));
  const double scalar =
      config.get_float("query_pre_attn_scalar", spec.head_size);
  if (scalar <= 0) config.fail("query_pre_attn_scalar", "over 0");
  spec.attention_scale = static_cast<float>(1 / std::sqrt(scalar));
  spec.attention_softcap =
      static_cast<float>(config.get_float("attn_logit_softcapping", 0));
  spec.logit_softcap =
      static_cast<float>(config.get_float("final_logit_softcapping", 0));
  const double local = config.get_float("rope_local_base_freq", 1e4);
  if (local <= 0) config.fail("rope_local_base_freq", "over 0");
  spec.ropes = {read_scaled_rope(config,
                                 spec.head_size,
                                 1e6,
                                 false,
                                 config.find_int("max_position_embeddings")),
                nn::make_rope({.dimensions = spec.head_size, .base = local},
                              std::nullopt)};
  spec.mixers = {
      GatedConvSpec{.num_taps = config.get_int("conv_L_cache", 3, 1, 1 << 12),
                    .bias = spec.qkv_bias}};
  set_gear_layers(config, spec);
  hold_windows(spec);
  apply_rules(checkpoint, {{WeightRule::Action::drop, "*embed_scale"}});
  return spec;
}

}  // namespace mlxlm
