// exaone, exaone4.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec exaone_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.eps_name = "layer_norm_epsilon",
                          .names = {.num_layers = "num_layers"}});
  use_gpt_names(spec);
  spec.names.attention = "attn.attention";
  spec.names.o = "out_proj";
  spec.names.gate = "c_fc_0";
  spec.names.up = "c_fc_1";
  spec.names.down = "c_proj";
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  read_biases(config, spec);
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          0,
                          false,
                          config.find_int("max_position_embeddings"))};
  return spec;
}

ArchSpec exaone4_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.qk_norm = QkNorm::per_head;
  use_output_norms_only(spec);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1))};
  spec.own_caches = true;
  // A letter for each layer, again and again: L sees a window, G everything,
  // without positions.
  const auto pattern = config.find_string("sliding_window_pattern");
  const auto window = config.find_int("sliding_window", 1);
  if (!pattern || pattern->empty()) return spec;
  if (pattern->find_first_not_of("LG") != std::string::npos) {
    config.fail("sliding_window_pattern", "letters L and G");
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    if ((*pattern)[i % pattern->size()] == 'G') {
      layer.rope = -1;
      continue;
    }
    if (!window) config.fail("sliding_window", "a number of tokens");
    layer.window_tokens = *window;
    layer.rotating_cache = true;
  }
  return spec;
}

}  // namespace mlxlm
