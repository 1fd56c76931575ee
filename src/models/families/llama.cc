// llama (and mistral, xverse, iquestcoder, which are llama) and smollm3.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

ArchSpec llama_like(const ConfigReader& config) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.mlp_bias = config.get_bool("mlp_bias", false);
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.find_int("max_position_embeddings"))};
  read_layer_types(config, spec);
  return spec;
}

}  // namespace

ArchSpec llama_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = llama_like(config);
  for (auto& layer : spec.layers) {
    layer.rotating_cache = layer.window_tokens > 0;
  }
  spec.own_caches = true;
  return spec;
}

ArchSpec smollm3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = llama_like(config);
  const int interval = config.get_int("no_rope_layer_interval", 4, 1);
  const auto use_rope = config.find_bools("no_rope_layers");
  const auto num_layers = spec.layers.size();
  if (use_rope && use_rope->size() != num_layers) {
    config.fail("no_rope_layers",
                "a list of num_hidden_layers = " + std::to_string(num_layers) +
                    " times 0 or 1");
  }
  for (std::size_t i = 0; i < num_layers; ++i) {
    const bool turn = use_rope ? (*use_rope)[i] : (i + 1) % interval != 0;
    if (!turn) spec.layers[i].rope = -1;
  }
  return spec;
}

}  // namespace mlxlm
