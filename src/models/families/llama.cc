// llama (and mistral, xverse, iquestcoder, which are llama), smollm3, and those
// with other biases or positions.
#include "models/config_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

ArchSpec llama_like(const ConfigReader& config) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  read_biases(config, spec);
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
  hold_windows(spec);
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

ArchSpec helium_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  if (config.require_int("head_dim", 1) != spec.head_size) {
    config.fail("head_dim", "hidden_size over num_attention_heads");
  }
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.qkv_bias = config.require_bool("attention_bias");
  spec.mlp_bias = config.require_bool("mlp_bias");
  spec.ropes = {read_plain_rope(config, spec.head_size, 0, true)};
  return spec;
}

ArchSpec ernie4_5_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.qkv_bias = spec.o_bias = spec.mlp_bias = config.require_bool("use_bias");
  spec.ropes = {read_plain_rope(config, spec.head_size, 0, true)};
  return spec;
}

ArchSpec mimo_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qkv_bias = true;
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.get_int("max_position_embeddings", 32768))};
  config.find_int("num_nextn_predict_layers");  // of layers that are dropped:
  apply_rules(checkpoint, {{WeightRule::Action::drop, "model.mtp_layers.*"}});
  return spec;
}

ArchSpec seed_oss_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = config.get_bool("attention_bias", false);
  spec.o_bias = config.get_bool("attention_out_bias", false);
  spec.mlp_bias = config.get_bool("mlp_bias", false);
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.find_int("max_position_embeddings"))};
  return spec;
}

ArchSpec telechat3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  read_biases(config, spec);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1))};
  return spec;
}

}  // namespace mlxlm
