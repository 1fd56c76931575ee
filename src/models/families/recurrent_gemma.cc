// recurrent_gemma: gated linear recurrences, and attention to a window.
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

// block_types, again and again, say which layers attend.
void read_block_types(const ConfigReader& config, ArchSpec& spec) {
  // Two names, as published with the 2B and the 9B model.
  auto types = config.find_strings("block_types");
  if (!types) types = config.find_strings("_block_types");
  if (!types || types->empty()) {
    config.fail("block_types", "a list of \"recurrent\" and \"attention\"");
  }
  const int window = config.require_int("attention_window_size", 1);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    const auto& type = (*types)[i % types->size()];
    if (type == "recurrent") {
      layer.mixer = 0;
    } else if (type == "attention") {
      layer.window_tokens = window;
      layer.rotating_cache = true;
    } else {
      config.fail("block_types", "a list of \"recurrent\" and \"attention\"");
    }
  }
}

}  // namespace

ArchSpec recurrent_gemma_spec(const ConfigReader& config,
                              Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  if (spec.hidden_size % spec.num_heads != 0) {
    config.fail(
        "num_attention_heads",
        "a divisor of hidden_size = " + std::to_string(spec.hidden_size));
  }
  if (spec.intermediate_size % 2 != 0) {
    config.fail("intermediate_size", "an even number: of gate and up together");
  }
  spec.intermediate_size /= 2;
  spec.final_norm_spec = spec.norm;
  spec.final_norm_spec->weight_offset = 1;
  // The layers' norms have an epsilon of their own.
  spec.norm = {.weight_offset = 1, .eps = 1e-5f};
  spec.norm_name = "final_norm";
  spec.names.attention = "temporal_block";
  spec.names.attention_norm = "temporal_pre_norm";
  spec.names.mlp = "mlp_block";
  spec.names.mlp_norm = "channel_pre_norm";
  spec.activation = kernels::Activation::gelu_tanh;
  spec.qkv_bias = config.require_bool("attention_bias");
  spec.o_bias = spec.mlp_bias = true;
  spec.tied_head = !checkpoint.weights.contains("lm_head.weight");
  if (config.get_bool("embeddings_scale_by_sqrt_dim", true)) {
    spec.embedding_scale =
        static_cast<float>(std::sqrt(double(spec.hidden_size)));
  }
  spec.logit_softcap =
      static_cast<float>(config.require_float("logits_soft_cap"));
  spec.ropes = {read_plain_rope(config, spec.head_size / 2, 0)};
  spec.mixers = {
      RgLruSpec{.num_taps = config.require_int("conv1d_width", 2, 1 << 10)}};
  read_block_types(config, spec);
  spec.own_caches = true;
  return spec;
}

}  // namespace mlxlm
