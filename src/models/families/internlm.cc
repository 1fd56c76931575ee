// internlm2, internlm3.
#include "models/config_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

ArchSpec internlm_like(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.get_int("max_position_embeddings", 32768, 1))};
  apply_rules(checkpoint,
              {{WeightRule::Action::drop, "*attention.rope.inv_freq*"}});
  return spec;
}

}  // namespace

ArchSpec internlm2_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = internlm_like(config, checkpoint);
  spec.embedding_name = "tok_embeddings";
  spec.head_name = "output";
  spec.names.attention = "attention";
  spec.names.qkv = "wqkv";
  spec.names.o = "wo";
  spec.names.mlp = "feed_forward";
  spec.names.gate = "w1";
  spec.names.up = "w3";
  spec.names.down = "w2";
  spec.names.attention_norm = "attention_norm";
  spec.names.mlp_norm = "ffn_norm";
  spec.qkv_layout = QkvLayout::by_key_head;
  spec.qkv_bias = spec.o_bias = config.get_bool("bias", true);
  return spec;
}

ArchSpec internlm3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = internlm_like(config, checkpoint);
  spec.qkv_bias = spec.o_bias = config.get_bool("qkv_bias", false);
  spec.mlp_bias = config.get_bool("bias", false);
  return spec;
}

}  // namespace mlxlm
