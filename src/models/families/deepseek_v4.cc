// deepseek_v4: several streams joined by hyper-connections, attention to a
// window and to compressed groups of tokens, experts by token in the first
// layers. Method: transformers/models/deepseek_v4.
#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/deepseek_v4_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

constexpr const char* kSparse = "compressed_sparse_attention";
constexpr const char* kHeavy = "heavily_compressed_attention";

const std::vector<WeightRule> kPublished{
    {Action::rename, "*.indexer.compressor.*", "*.compressor.indexer.*"},
    {Action::rename,
     "*.attn.indexer.weights_proj.*",
     "*.attn.compressor.indexer.scorer.weights_proj.*"},
    {Action::rename, "*.attn.indexer.*", "*.attn.compressor.indexer.*"},
    {Action::rename,
     "*.compressor.indexer.norm.*",
     "*.compressor.indexer.kv_norm.*"},
    {Action::rename, "*.attn.norm.*", "*.attn.kv_norm.*"},
    {Action::rename, "*.ape", "*.position_bias"},
    {Action::rename, "hc_head_*", "model.hc_head.hc_*"}};

// Of each layer the number of tokens of a group; of windows alone 0.
std::vector<int> read_group_tokens(const ConfigReader& config,
                                   int sparse,
                                   int heavy,
                                   int num_layers) {
  std::vector<int> sizes;
  if (const auto types = config.find_strings("layer_types")) {
    for (const auto& type : *types) {
      if (type != kSparse && type != kHeavy && type != "sliding_attention") {
        config.fail("layer_types",
                    "a list of sliding_attention, " + std::string(kSparse) +
                        " and " + kHeavy);
      }
      sizes.push_back(type == kSparse ? sparse : type == kHeavy ? heavy : 0);
    }
  } else if (const auto ratios = config.find_ints("compress_ratios")) {
    for (int ratio : *ratios) {
      if (ratio != 0 && ratio != sparse && ratio != heavy) {
        config.fail("compress_ratios", "a list of 0 and the two rates");
      }
      sizes.push_back(ratio);
    }
  } else {
    for (int i = 0; i < num_layers; ++i) {
      sizes.push_back(i < 2 || i % 2 == 0 ? heavy : sparse);
    }
  }
  if (static_cast<int>(sizes.size()) < num_layers) {
    config.fail("layer_types", "a type for each layer");
  }
  return sizes;
}

void place_attention(const ConfigReader& config,
                     CompressedAttentionSpec common,
                     ArchSpec& spec) {
  const nlohmann::json none = nlohmann::json::object();
  const auto rates =
      config.find_object("compress_rates").value_or(config.with_values(none));
  const int sparse = rates.get_int(
      kSparse, config.get_int("compress_rate_csa", 4, 2, 1 << 16), 2, 1 << 16);
  const int heavy = rates.get_int(
      kHeavy, config.get_int("compress_rate_hca", 128, 2, 1 << 16), 2, 1 << 16);
  if (sparse == heavy) {
    config.fail("compress_rates", "two different numbers of tokens");
  }
  const auto index = read_row_index(config, common, 64);
  const int num_layers = static_cast<int>(spec.layers.size());
  const auto sizes = read_group_tokens(config, sparse, heavy, num_layers);
  common.index_name = "compressor.indexer";
  common.weight_name = "scorer.weights_proj";
  common.q_head_norm = true;
  for (int i = 0; i < num_layers; ++i) {
    auto mixer = common;
    mixer.group_tokens = sizes[i];
    mixer.rope = sizes[i] > 0 ? 1 : 0;
    mixer.compresses = mixer.has_places = sizes[i] > 0;
    if (sizes[i] == sparse) {
      mixer.index = index;
      mixer.overlaps = mixer.own_index_rows = true;
    }
    mixer.sees_all_rows = sizes[i] == heavy;
    spec.layers[i].mixer = i;
    spec.mixers.emplace_back(mixer);
  }
}

// The first ones choose by a table of tokens.
void place_experts(const ConfigReader& config, ArchSpec& spec) {
  auto experts = read_deepseek_v4_experts(
      config, {.num_experts = 256, .hidden_size = 2048});
  experts.names.stack = "switch_mlp";
  auto hashed = experts;
  hashed.names.selection_bias = "";
  hashed.names.router_table = "gate.tid2eid";
  const auto types = config.find_strings("mlp_layer_types");
  const std::size_t num_hashed = config.get_int("num_hash_layers", 3);
  if (types && types->size() < spec.layers.size()) {
    config.fail("mlp_layer_types", "a type for each layer");
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    layer.clamp = experts.clamp;
    const bool by_token = types ? (*types)[i] == "hash_moe" : i < num_hashed;
    if (types && !by_token && (*types)[i] != "moe") {
      config.fail("mlp_layer_types", "a list of hash_moe and moe");
    }
    layer.experts = by_token ? hashed : experts;
  }
}

std::vector<nn::Rope> read_ropes(const ConfigReader& config, int dimensions) {
  auto parameters = config.find_object("rope_parameters");
  if (!parameters || parameters->raw().empty()) {
    parameters = config.find_object("rope_scaling");
  }
  double theta = config.get_float("rope_theta", 10000);
  if (parameters) {
    if (auto main = parameters->find_object("main")) {
      theta = main->get_float("rope_theta", theta);
    }
    if (auto own = parameters->find_object("compress")) parameters = own;
  }
  if (theta <= 1) config.fail("rope_theta", "a number over 1");
  return {nn::make_rope(
              {.dimensions = dimensions, .base = theta, .traditional = true},
              std::nullopt),
          read_compressed_rope(config, parameters, dimensions)};
}

}  // namespace

ArchSpec deepseek_v4_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_deepseek_v4_sizes(config,
                                     {.hidden_size = 4096,
                                      .num_layers = 43,
                                      .intermediate_size = 2048,
                                      .eps = 1e-6});
  if (config.get_int("num_key_value_heads", 1) != 1) {
    config.fail("num_key_value_heads", "1");
  }
  if (config.get_int("n_shared_experts", 1) != 1) {
    config.fail("n_shared_experts", "1");
  }
  require_true(config, "norm_topk_prob");
  require_false(config, "attention_bias");
  require_false(config, "mlp_bias");
  require_text(config, "hidden_act", "silu");
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  auto attention = read_compressed_attention(config, spec, 1024);
  const double share =
      config.get_float("partial_rotary_factor",
                       config.get_int("qk_rope_head_dim", 64, 2) /
                           static_cast<double>(spec.head_size));
  if (!(share > 0 && share <= 1) || spec.head_size * share < 2) {
    config.fail("partial_rotary_factor", "a part of the head");
  }
  attention.rotated = static_cast<int>(spec.head_size * share);
  spec.ropes = read_ropes(config, attention.rotated);
  place_attention(config, attention, spec);
  spec.hyper = read_hyper(config);
  spec.hyper->reads_at_once = true;
  place_experts(config, spec);
  spec.own_caches = true;
  take_published_deepseek_v4(
      checkpoint, spec, attention.num_output_groups, kPublished);
  drop_layers_from(
      checkpoint, "model.layers.", static_cast<int>(spec.layers.size()));
  split_output_groups(checkpoint, spec, attention.num_output_groups);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto mlp = spec.layer_path(i) + "mlp.";
    split_joined_experts(checkpoint, mlp + "experts", mlp + "switch_mlp", {});
  }
  return spec;
}

}  // namespace mlxlm
