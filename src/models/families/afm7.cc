// afm7: the last layers have no keys and values of their own; keys and values
// are rounded to 8 bits.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec afm7_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::from_width,
                         {.eps = 1e-5,
                          .names = {.hidden_size = "hidden_dim",
                                    .num_layers = "num_layers",
                                    .intermediate_size = nullptr,
                                    .num_heads = "num_heads",
                                    .num_kv_heads = "num_kv_heads"}});
  const double factor = config.get_float("hidden_dim_scale_factor", 3.25);
  if (!(factor * spec.hidden_size >= 1) || factor > 1024) {
    config.fail("hidden_dim_scale_factor", "a positive number");
  }
  spec.intermediate_size = static_cast<int>(spec.hidden_size * factor);
  const int num_layers = static_cast<int>(spec.layers.size());
  const int num_reusing =
      config.require_int("num_kv_reuse_layers", 0, num_layers - 1);
  const int num_own = num_layers - num_reusing;
  for (int i = num_own; i < num_layers; ++i) {
    auto& layer = spec.layers[i];
    layer.keys_of = num_own - 1;
    layer.path = "kv_reuse_layers." + std::to_string(i - num_own) + ".";
  }
  spec.own_caches = true;
  spec.tied_head = true;
  spec.embedding_name = "embedding";
  spec.norm_name = "output_norm";
  spec.names.qkv = "qkv_proj";
  spec.names.o = "out_proj";
  spec.names.key_step = "quant_key_scale";
  spec.names.value_step = "quant_value_scale";
  spec.qk_norm = QkNorm::per_head;
  spec.qk_norm_after_rope = true;
  spec.qk_norm_spec = NormSpec{.eps = 1e-5f};
  spec.ropes = {read_plain_rope(config, spec.head_size, 50000, true)};
  return spec;
}

}  // namespace mlxlm
