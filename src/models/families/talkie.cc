// talkie: norms without weights, learnt gains in their place.
#include "models/config_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {

ArchSpec talkie_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::optional,
                         {.hidden_size = 5120,
                          .num_layers = 40,
                          .intermediate_size = 13696,
                          .num_heads = 40,
                          .vocabulary_size = 65540,
                          .eps = 1.1920928955078125e-07,
                          .head_size = 128,
                          .names = {.num_kv_heads = nullptr}});
  if (spec.context_tokens == 0) spec.context_tokens = 2048;
  spec.norm.weight = false;
  spec.embedding_norm = spec.norm;
  spec.qk_norm = QkNorm::per_head;
  spec.qk_norm_after_rope = true;
  spec.embedding_name = "embed";
  spec.layers_name = "blocks";
  spec.head_gain_name = "lm_head_gain.w_g";
  spec.names.attention = "attn";
  spec.names.q = "attn_query";
  spec.names.k = "attn_key";
  spec.names.v = "attn_value";
  spec.names.o = "attn_resid";
  spec.names.query_gain = "head_gain.head_g";
  spec.names.attention_gain = "attn_gain.a_g";
  spec.names.gate = "mlp_gate";
  spec.names.up = "mlp_linear";
  spec.names.down = "mlp_resid";
  spec.names.mlp_gain = "mlp_gain.a_g";
  spec.names.first_state_gain = "embed_skip.a_g";
  spec.ropes = {read_plain_rope(config, spec.head_size, 1e6).reversed()};
  apply_rules(checkpoint,
              {{WeightRule::Action::drop, "*rotary*"},
               {WeightRule::Action::drop, "*cos"},
               {WeightRule::Action::drop, "*sin"},
               {WeightRule::Action::rename, "lm_head", "lm_head.weight"}});
  return spec;
}

}  // namespace mlxlm
