// cohere, cohere2: LayerNorm, attention and MLP side by side.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

void set_cohere(const ConfigReader& config, ArchSpec& spec, double theta) {
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.bias = config.get_bool("layer_norm_bias", false);
  spec.parallel = true;
  spec.names.mlp_norm = "";
  spec.tied_head = true;
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.logit_scale =
      static_cast<float>(config.get_float("logit_scale", 0.0625));
  spec.ropes = {read_plain_rope(config, spec.head_size, theta, true)};
}

}  // namespace

ArchSpec cohere_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::from_width,
                         {.hidden_size = 8192,
                          .num_layers = 40,
                          .intermediate_size = 22528,
                          .num_heads = 64,
                          .vocabulary_size = 256000,
                          .eps_name = "layer_norm_eps",
                          .eps = 1e-5,
                          .num_kv_heads = 64});
  set_cohere(config, spec, 8000000);
  if (config.get_bool("use_qk_norm", false)) spec.qk_norm = QkNorm::each_head;
  return spec;
}

ArchSpec cohere2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 4096,
                          .num_layers = 32,
                          .intermediate_size = 14336,
                          .num_heads = 32,
                          .vocabulary_size = 256000,
                          .eps_name = "layer_norm_eps",
                          .eps = 1e-5,
                          .num_kv_heads = 8,
                          .head_size = 128});
  if (spec.head_size * spec.num_heads != spec.hidden_size) {
    config.fail("head_dim", "hidden_size over num_attention_heads");
  }
  set_cohere(config, spec, 50000);
  set_window_pattern(spec,
                     config.get_int("sliding_window", 4096, 1),
                     config.get_int("sliding_window_pattern", 4, 1));
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 0 : -1;
  return spec;
}

}  // namespace mlxlm
