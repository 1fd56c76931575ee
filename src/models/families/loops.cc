// nanbeige, iquestloopcoder: the same layers several times, each time with
// caches of their own.
#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

ArchSpec llama_with_loops(const ConfigReader& config, double theta) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  read_biases(config, spec);
  spec.ropes = {read_scaled_rope(config,
                                 spec.head_size,
                                 theta,
                                 false,
                                 config.find_int("max_position_embeddings"))};
  spec.own_caches = true;
  return spec;
}

void repeat_layers(ArchSpec& spec, int num_loops) {
  const int num_layers = static_cast<int>(spec.layers.size());
  for (int i = num_layers; i < num_loops * num_layers; ++i) {
    auto layer = spec.layers[i % num_layers];
    layer.weights_of = i % num_layers;
    spec.layers.push_back(layer);
  }
}

}  // namespace

ArchSpec nanbeige_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = llama_with_loops(config, 10000);
  for (const char* key : {"enable_double_loop_split",
                          "loop_share_kv",
                          "enable_depth_attention"}) {
    require_false(config, key);
  }
  // Weights of losses, one for each loop but the first.
  const int given = config.get_int("num_loops", 1, 1, 1 << 10);
  const auto losses = config.find_floats("loop_loss_weights");
  const int num_loops =
      losses && !losses->empty() ? static_cast<int>(losses->size()) + 1 : given;
  const auto num_layers = spec.layers.size();
  repeat_layers(spec, num_loops);
  if (config.get_bool("skip_loop_final_norm", false)) return spec;
  for (std::size_t i = num_layers; i < spec.layers.size(); i += num_layers) {
    spec.layers[i - 1].norm_after = true;
  }
  return spec;
}

ArchSpec iquestloopcoder_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = llama_with_loops(config, 500000);
  if (spec.context_tokens == 0) spec.context_tokens = 131072;
  if (config.get_int("loop_num", 2) != 2) {
    throw Error(ErrorKind::unsupported,
                "config.json: loop_num other than 2 isn't supported");
  }
  const int window = config.get_int("loop_window_size", 64, 1);
  const auto num_layers = spec.layers.size();
  repeat_layers(spec, 2);
  for (std::size_t i = num_layers; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    layer.window_tokens = window;
    layer.rotating_cache = true;
    layer.also_reads = layer.weights_of;
  }
  spec.names.mix_gate = "gate_projections";
  return spec;
}

}  // namespace mlxlm
