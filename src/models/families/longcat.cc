// longcat_flash, longcat_flash_ngram: layers of two halves, each with latent
// attention and an MLP, and experts that work beside the second half.
#include <cmath>
#include <cstdint>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/latent_fields.h"

namespace mlxlm {
namespace {

ExpertsSpec read_longcat_experts(const ConfigReader& config) {
  auto experts = read_experts(config,
                              {.count = "n_routed_experts",
                               .chosen = "moe_topk",
                               .hidden_size = "expert_ffn_hidden_size"});
  experts.num_self_experts = config.require_int("zero_expert_num", 0, 1 << 14);
  experts.router.normalize = config.get_bool("norm_topk_prob", false);
  experts.router.scale =
      static_cast<float>(config.require_float("routed_scaling_factor"));
  experts.router_bias = config.get_bool("router_bias", false);
  experts.names.router = "router.classifier";
  experts.names.selection_bias = "router.e_score_correction_bias";
  return experts;
}

// One layer of the configuration as two.
void split_layers(ArchSpec& spec, const ExpertsSpec& experts) {
  const auto num_layers = spec.layers.size();
  spec.layers.clear();
  for (std::size_t i = 0; i < num_layers; ++i) {
    for (int half = 0; half < 2; ++half) {
      const auto number = "." + std::to_string(half);
      auto& layer = spec.layers.emplace_back();
      layer.path = spec.layers_name + "." + std::to_string(i) + ".";
      layer.names = spec.names;
      layer.names->attention = "self_attn" + number;
      layer.names->attention_norm = "input_layernorm" + number;
      layer.names->mlp = "mlps" + number;
      layer.names->mlp_norm = "post_attention_layernorm" + number;
      layer.cache_list = half == 0 ? 2 : 0;
      layer.cache_part = half;
      if (half == 0) layer.shortcut = experts;
    }
  }
}

}  // namespace

ArchSpec longcat_flash_spec(const ConfigReader& config,
                            Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.names = {.num_layers = "num_layers",
                                    .intermediate_size = "ffn_hidden_size",
                                    .num_kv_heads = nullptr}});
  require_text(config, "attention_method", "MLA");
  require_text(config, "zero_expert_type", "identity");
  auto& latent = spec.latent.emplace(read_latent(config, spec, {}));
  latent.absorbed = true;
  latent.eps = 1e-5f;
  auto factor = [&](int rank) {
    return std::sqrt(static_cast<float>(spec.hidden_size) / rank);
  };
  if (config.require_bool("mla_scale_q_lora") && latent.sizes.query_rank > 0) {
    latent.query_factor = factor(latent.sizes.query_rank);
  }
  if (config.require_bool("mla_scale_kv_lora")) {
    latent.latent_factor = factor(latent.sizes.rank);
  }
  spec.ropes = {
      read_scaled_rope(config,
                       latent.sizes.rotated,
                       0,
                       true,
                       config.require_int("max_position_embeddings", 1))};
  spec.own_caches = true;
  split_layers(spec, read_longcat_experts(config));
  apply_rules(checkpoint, {{WeightRule::Action::drop, "model.mtp*"}});
  stack_layers(checkpoint, spec);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    split_kv_b(checkpoint,
               spec.layer_path(i) + spec.layers[i].names->attention,
               latent.sizes);
  }
  return spec;
}

ArchSpec longcat_flash_ngram_spec(const ConfigReader& config,
                                  Checkpoint& checkpoint) {
  auto spec = longcat_flash_spec(config, checkpoint);
  const std::string name = "ngram_embeddings";
  spec.embedding_name = name + ".word_embeddings";
  NgramSpec ngram{
      .name = name,
      .longest = config.get_int("emb_neighbor_num", 4, 2, 64),
      .tables_per_length = config.get_int("emb_split_num", 4, 1, 64)};
  if ((ngram.longest - 1) * ngram.tables_per_length > spec.hidden_size) {
    config.fail("emb_split_num", "fewer tables than hidden_size");
  }
  const std::int64_t rows =
      std::int64_t{spec.vocabulary_size} *
      config.get_int("ngram_vocab_size_ratio", 78, 1, 1 << 20);
  if (rows > 1 << 30) {
    config.fail("ngram_vocab_size_ratio", "smaller for this vocab_size");
  }
  ngram.num_rows = static_cast<int>(rows) + 1;
  spec.ngram = ngram;
  apply_rules(checkpoint,
              {{WeightRule::Action::rename,
                "model.embed_tokens.*",
                "model." + spec.embedding_name + ".*"}});
  return spec;
}

}  // namespace mlxlm
