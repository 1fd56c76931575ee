// llama4 (its text half) and llama4_text.
#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/text_half.h"

namespace mlxlm {
namespace {

ArchSpec llama4_half_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  if (config.require_bool("use_qk_norm")) {
    spec.qk_norm = QkNorm::per_head;
    spec.qk_norm_spec = NormSpec{.weight = false, .eps = 1e-6f};
    spec.qk_norm_after_rope = true;
  }
  spec.names.mlp = "feed_forward";
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       0,
                       true,
                       config.require_int("max_position_embeddings", 1))};
  if (config.get_int("attn_temperature_tuning", 4) != 0) {
    spec.query_scale = {
        .beta = static_cast<float>(config.get_float("attn_scale", 0.1)),
        .length = config.get_int("floor_scale", 8192, 1),
        .shift = 1};
  }
  const int chunk = config.require_int("attention_chunk_size", 1);
  auto experts = read_experts(
      config,
      {.count = "num_local_experts", .hidden_size = "intermediate_size"});
  if (experts.router.num_chosen != 1) config.fail("num_experts_per_tok", "1");
  experts.router.score = nn::RouterScore::chosen_sigmoid;
  experts.scale_input = true;
  experts.shared_hidden_size = experts.hidden_size;
  experts.names = {
      .router = "router", .stack = "experts", .shared = "shared_expert"};
  const int step = config.require_int("interleave_moe_layer_step", 1);
  spec.intermediate_size =
      config.require_int("intermediate_size_mlp", 1, 1 << 20);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    auto& layer = spec.layers[i];
    // Every fourth layer sees everything and knows no positions; its queries
    // grow instead.
    if ((i + 1) % 4 == 0) {
      layer.rope = -1;
      layer.qk_norm = false;
    } else {
      layer.chunk_tokens = chunk;
      layer.query_scale = false;
    }
    if (i % step == step - 1) layer.experts = experts;
    const auto path = spec.layer_path(i) + "feed_forward.experts";
    split_joined_experts(checkpoint, path, path, {.swapped = true});
  }
  spec.own_caches = true;
  return spec;
}

}  // namespace

ArchSpec llama4_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  return text_half_spec(
      config.require_object("text_config"), checkpoint, llama4_half_spec);
}

ArchSpec llama4_text_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::required);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.head_name = "output";
  spec.names.mlp = "feed_forward";
  spec.intermediate_size =
      config.require_int("intermediate_size_mlp", 1, 1 << 20);
  if (config.require_bool("use_qk_norm")) {
    spec.qk_norm = QkNorm::per_head;
    spec.qk_norm_spec = NormSpec{.weight = false, .eps = spec.norm.eps};
  }
  spec.ropes = {read_plain_rope(config, spec.head_size, 0, true)};
  const auto use_rope = config.find_bools("no_rope_layers");
  if (!use_rope || use_rope->size() < spec.layers.size()) {
    config.fail("no_rope_layers", "a list of num_hidden_layers times 0 or 1");
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    spec.layers[i].rope = (*use_rope)[i] ? 0 : -1;
  }
  return spec;
}

}  // namespace mlxlm
