// deepseek and the families of its second and third version, which have latent
// attention: kimi_k2, kimi_k25, kimi_vl, joyai_llm_flash, glm4_moe_lite,
// mistral4, deepseek_v32, glm_moe_dsa, youtu_llm, minicpm3.
#include <cmath>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/latent_fields.h"
#include "models/text_half.h"

namespace mlxlm {
namespace {

const FieldDefaults kDeepseekSizes{.hidden_size = 4096,
                                   .num_layers = 30,
                                   .intermediate_size = 11008,
                                   .num_heads = 32,
                                   .vocabulary_size = 102400,
                                   .eps = 1e-6};
const LatentDefaults kDeepseekLatent{
    .rank = 512, .query_rank = 1536, .fixed = 128, .rotated = 64, .value = 128};

nn::Rope read_latent_rope(const ConfigReader& config,
                          const LatentSpec& latent,
                          double theta,
                          bool traditional,
                          int max_positions) {
  return read_scaled_rope(
      config,
      latent.sizes.rotated,
      theta,
      traditional,
      config.get_int("max_position_embeddings", max_positions, 1));
}

// The tensors of a model with latent attention in their places; layers for
// predicting several tokens go.
void place_weights(Checkpoint& checkpoint, const ArchSpec& spec) {
  const auto layers = spec.prefix + spec.layers_name + ".";
  const int num_layers = static_cast<int>(spec.layers.size());
  drop_layers_from(checkpoint, layers, num_layers);
  stack_layers(checkpoint, spec);
  if (!spec.latent || !spec.latent->absorbed) return;
  for (int i = 0; i < num_layers; ++i) {
    split_kv_b(checkpoint,
               spec.layer_path(i) + spec.names.attention,
               spec.latent->sizes);
  }
}

void use_sparse_layers(const ConfigReader& config,
                       ArchSpec& spec,
                       const std::optional<ExpertsSpec>& experts,
                       int first = 0) {
  use_experts(spec,
              experts,
              config.get_int("first_k_dense_replace", first),
              config.get_int("moe_layer_freq", 1, 1));
}

// The third version but for its tensors.
ArchSpec read_deepseek_v3(const ConfigReader& config) {
  auto spec = read_sizes(
      config, KvHeads::as_heads, HeadSize::from_width, kDeepseekSizes);
  spec.latent = read_latent(config, spec, kDeepseekLatent);
  spec.latent->absorbed = true;
  spec.ropes = {read_latent_rope(config, *spec.latent, 10000, true, 2048)};
  use_sparse_layers(config, spec, read_routed_experts(config));
  return spec;
}

void add_index(const ConfigReader& config, ArchSpec& spec, bool traditional) {
  auto& latent = *spec.latent;
  if (latent.sizes.query_rank == 0) {
    config.fail("q_lora_rank", "a positive integer");
  }
  latent.index = {
      .num_heads = config.get_int("index_n_heads", 64, 1, 1 << 14),
      .head_size = config.get_int("index_head_dim", 128, 1, 1 << 14),
      .num_tokens = config.get_int("index_topk", 2048, 1),
      .rope = 1};
  if (latent.index.head_size < latent.sizes.rotated) {
    config.fail("index_head_dim", "at least qk_rope_head_dim");
  }
  spec.ropes.push_back(
      read_latent_rope(config,
                       latent,
                       10000,
                       config.get_bool("indexer_rope_interleave", traditional),
                       2048));
  for (auto& layer : spec.layers) layer.cache_list = 2;
  spec.own_caches = true;
}

}  // namespace

ArchSpec deepseek_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(
      config, KvHeads::as_heads, HeadSize::from_width, kDeepseekSizes);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       10000,
                       false,
                       config.get_int("max_position_embeddings", 2048, 1))};
  if (config.has("n_routed_experts")) {
    auto experts = read_experts(config, {.count = "n_routed_experts"});
    experts.shared_hidden_size =
        experts.hidden_size * config.get_int("n_shared_experts", 0, 0, 1 << 10);
    use_sparse_layers(config, spec, experts);
  }
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec deepseek_v2_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(
      config, KvHeads::as_heads, HeadSize::from_width, kDeepseekSizes);
  spec.latent = read_latent(config, spec, kDeepseekLatent);
  spec.ropes = {read_latent_rope(config, *spec.latent, 10000, true, 2048)};
  accept_only(
      config, "topk_method", {"gready", "greedy", "group_limited_greedy"});
  if (config.has("n_routed_experts")) {
    auto experts = read_experts(config, {.count = "n_routed_experts"});
    experts.shared_hidden_size =
        experts.hidden_size * config.get_int("n_shared_experts", 0, 0, 1 << 10);
    experts.router.scale =
        static_cast<float>(config.get_float("routed_scaling_factor", 1.0));
    const bool grouped =
        config.get_string("topk_method", "") == "group_limited_greedy";
    if (grouped) read_groups(config, experts);
    experts.router.group_score = nn::GroupScore::best;
    use_sparse_layers(config, spec, experts);
  }
  place_weights(checkpoint, spec);
  return spec;
}

ArchSpec deepseek_v3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_deepseek_v3(config);
  place_weights(checkpoint, spec);
  return spec;
}

ArchSpec kimi_k25_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  return text_half_spec(
      config.require_object("text_config"), checkpoint, deepseek_v3_spec);
}

ArchSpec deepseek_v32_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_deepseek_v3(config);
  add_index(config, spec, /*traditional=*/false);
  place_weights(checkpoint, spec);
  return spec;
}

ArchSpec glm_moe_dsa_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_deepseek_v3(config);
  add_index(config, spec, /*traditional=*/true);
  place_weights(checkpoint, spec);
  return spec;
}

ArchSpec glm4_moe_lite_spec(const ConfigReader& config,
                            Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.hidden_size = 2048,
                          .num_layers = 47,
                          .intermediate_size = 10240,
                          .num_heads = 20,
                          .vocabulary_size = 154880,
                          .eps = 1e-5});
  spec.latent = read_latent(config,
                            spec,
                            {.rank = 512,
                             .query_rank = 768,
                             .fixed = 192,
                             .rotated = 64,
                             .value = 256});
  spec.latent->absorbed = true;
  spec.latent->eps = spec.norm.eps;
  // The reference doesn't look at these two.
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  if (config.get_float("partial_rotary_factor", 1) != 1) {
    config.fail("partial_rotary_factor", "1; others aren't supported");
  }
  spec.ropes = {read_latent_rope(config, *spec.latent, 1e6, true, 202752)};
  use_sparse_layers(config,
                    spec,
                    read_routed_experts(config,
                                        {.num_experts = 64,
                                         .num_shared = 1,
                                         .hidden_size = 1536,
                                         .num_chosen = 4,
                                         .scale = 1.8}),
                    1);
  place_weights(checkpoint, spec);
  return spec;
}

ArchSpec mistral4_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.latent = read_latent(config, spec, {});
  spec.latent->absorbed = true;
  // What they say follows from the sizes of a head's parts.
  config.find_int("head_dim");
  config.find_int("qk_head_dim");
  spec.ropes = {read_latent_rope(config,
                                 *spec.latent,
                                 10000,
                                 config.get_bool("rope_interleave", true),
                                 0)};
  const auto rope = config.require_object("rope_parameters");
  spec.query_scale = {
      .beta = static_cast<float>(rope.require_float("llama_4_scaling_beta")),
      .length = rope.require_int("original_max_position_embeddings", 1)};
  auto experts = read_routed_experts(config);
  if (experts) {
    experts->router.score = nn::RouterScore::softmax;
    experts->router.normalize = config.get_bool("norm_topk_prob", true);
    experts->names.selection_bias = "";
  }
  use_experts(spec, experts, config.get_int("first_k_dense_replace", 0));
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto mlp = spec.layer_path(i) + "mlp.";
    split_joined_experts(checkpoint, mlp + "experts", mlp + "switch_mlp", {});
  }
  place_weights(checkpoint, spec);
  return spec;
}

ArchSpec youtu_llm_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.hidden_size = 2048,
                          .num_layers = 32,
                          .intermediate_size = 6144,
                          .num_heads = 16,
                          .vocabulary_size = 128256,
                          .eps = 1e-6});
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.mlp_bias = config.get_bool("mlp_bias", false);
  spec.latent = read_latent(config, spec, kDeepseekLatent);
  spec.latent->eps = spec.norm.eps;
  spec.attention_scale =
      1 / std::sqrt(static_cast<float>(spec.latent->sizes.head()));
  spec.ropes = {read_latent_rope(config,
                                 *spec.latent,
                                 1600000,
                                 config.get_bool("rope_traditional", true),
                                 131072)};
  place_weights(checkpoint, spec);
  return spec;
}

ArchSpec minicpm3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.latent = read_latent(config, spec, {.value = -spec.head_size});
  spec.latent->eps = 1e-5f;
  require_false(config, "rope_traditional");
  spec.attention_scale =
      1 / std::sqrt(static_cast<float>(spec.latent->sizes.head()));
  const int dimensions = spec.latent->sizes.rotated;
  const auto scaling = config.require_object("rope_scaling");
  spec.ropes = {nn::Rope::long_rope(
      {.dimensions = dimensions,
       .base = read_rope_theta(config, 1e6),
       .max_positions = config.require_int("max_position_embeddings", 1),
       .original_max_positions =
           scaling.get_int("original_max_position_embeddings", 4096, 2),
       .long_factors = scaling.has("long_factor")
                           ? nn::read_long_factors(scaling, dimensions)
                           : std::vector<double>{1.0}})};
  const double num_layers = static_cast<double>(spec.layers.size());
  spec.embedding_scale = static_cast<float>(config.require_float("scale_emb"));
  spec.residual_scale = static_cast<float>(config.require_float("scale_depth") /
                                           std::sqrt(num_layers));
  const int base = config.require_int("dim_model_base", 1);
  // The tied head goes without it.
  if (!spec.tied_head) {
    spec.logit_scale = static_cast<float>(base) / spec.hidden_size;
  }
  return spec;
}

}  // namespace mlxlm
