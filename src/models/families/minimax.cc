// minimax (minimax_m2), and the text half of minimax_m3_vl: attention to blocks
// that an indexer chooses, clamped gates.
#include <algorithm>

#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/text_half.h"

namespace mlxlm {
namespace {

// Fields of the indexer: nested as published, else flat.
std::optional<BlockIndexSpec> read_block_index(const ConfigReader& config,
                                               const ArchSpec& spec) {
  const auto nested = config.find_object("sparse_attention_config");
  auto find = [&](const char* inner, const char* outer) {
    auto value = config.find_int(outer);
    if (nested) {
      if (auto own = nested->find_int(inner)) value = own;
    }
    return value;
  };
  auto require = [&](const char* inner, const char* outer, int max) {
    const auto value = find(inner, outer);
    if (!value || *value < 1 || *value > max) {
      config.fail(outer, "a positive integer up to " + std::to_string(max));
    }
    return *value;
  };
  if (!find("sparse_block_size", "index_block_size")) return std::nullopt;
  BlockIndexSpec index{
      .num_heads =
          require("sparse_num_index_heads", "index_n_heads", spec.num_heads),
      .head_size = require("sparse_index_dim", "index_head_dim", 1 << 14),
      .block_tokens = require("sparse_block_size", "index_block_size", 1 << 20),
      .num_blocks = require("sparse_topk_blocks", "index_topk_blocks", 1 << 10),
      .num_local_blocks =
          find("sparse_local_block", "index_local_blocks").value_or(1),
      .rope = 1};
  if (spec.num_heads % index.num_heads != 0) {
    config.fail("index_n_heads", "a divisor of num_attention_heads");
  }
  return index;
}

// One number per layer, not 0 where the layer is so.
bool flagged(const ConfigReader& config,
             const char* key,
             const std::optional<std::vector<int>>& flags,
             std::size_t layer) {
  if (!flags) return true;
  if (layer >= flags->size()) config.fail(key, "a number for each layer");
  return (*flags)[layer] != 0;
}

bool is_of_type(const ConfigReader& config,
                const char* key,
                const std::vector<std::string>& types,
                std::size_t layer,
                const char* type) {
  if (layer >= types.size()) config.fail(key, "a type for each layer");
  return types[layer] == type;
}

void use_block_index(const ConfigReader& config, ArchSpec& spec) {
  const auto index = read_block_index(config, spec);
  const auto types = config.find_strings("layer_types");
  auto flags = config.find_ints("sparse_attention_freq");
  if (auto nested = config.find_object("sparse_attention_config")) {
    if (auto own = nested->find_ints("sparse_attention_freq")) flags = own;
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    const bool sparse =
        index &&
        (types ? !is_of_type(config, "layer_types", *types, i, "full_attention")
               : flagged(config, "sparse_attention_freq", flags, i));
    layer.cache_list = sparse ? 2 : 1;
    if (sparse) {
      layer.block_index = index;
    } else {
      layer.cache_part = 0;
    }
  }
  spec.own_caches = true;
}

// The layers without experts have another name for their MLP.
void use_m3_experts(const ConfigReader& config,
                    ArchSpec& spec,
                    const ExpertsSpec& experts) {
  const int dense_size =
      config.get_int("dense_intermediate_size", 12288, 1, 1 << 20);
  const auto types = config.find_strings("mlp_layer_types");
  const auto flags = config.find_ints("moe_layer_freq");
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    layer.clamp = experts.clamp;
    if (types ? is_of_type(config, "mlp_layer_types", *types, i, "sparse")
              : flagged(config, "moe_layer_freq", flags, i)) {
      layer.experts = experts;
    } else {
      layer.names = spec.names;
      layer.names->mlp = "mlp";
      layer.intermediate_size = dense_size;
    }
  }
}

// Where conversions have other places for tensors: the MLP of layers without
// experts, the shared expert as the last of the stack, gate and up in one.
void place_m3_weights(Checkpoint& checkpoint, const ArchSpec& spec) {
  using Action = WeightRule::Action;
  auto& weights = checkpoint.weights;
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto path = spec.layer_path(static_cast<int>(i));
    const auto block = path + "block_sparse_moe.";
    const auto& experts = spec.layers[i].experts;
    if (!experts) {
      for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
        const auto name = std::string(part) + ".*";
        apply_rules(checkpoint,
                    {{Action::rename, block + name, path + "mlp." + name}});
      }
      continue;
    }
    const int count = experts->num_experts;
    for (const char* part :
         {"gate_up_proj", "gate_proj", "up_proj", "down_proj"}) {
      for (const char* tensor : {".weight", ".scales", ".biases"}) {
        const auto name = std::string(part) + tensor;
        auto found = weights.find(block + "switch_mlp." + name);
        if (found == weights.end() || found->second.ndim() != 3 ||
            found->second.shape(0) != count + 1) {
          continue;
        }
        auto parts = mx::split(found->second, mx::Shape{count}, 0);
        found->second = parts[0];
        weights.insert_or_assign(block + "shared_experts." + name,
                                 mx::squeeze(parts[1], 0));
      }
    }
    for (const char* owner : {"switch_mlp.", "shared_experts."}) {
      for (const char* tensor : {".weight", ".scales", ".biases"}) {
        const auto both = block + owner + "gate_up_proj" + tensor;
        auto found = weights.find(both);
        if (found == weights.end() || found->second.ndim() < 2 ||
            found->second.shape(-2) % 2 != 0) {
          continue;
        }
        auto parts = mx::split(found->second, 2, -2);
        weights.erase(both);
        weights.insert_or_assign(block + owner + "gate_proj" + tensor,
                                 parts[0]);
        weights.insert_or_assign(block + owner + "up_proj" + tensor, parts[1]);
      }
    }
  }
}

ExpertsSpec read_m3_experts(const ConfigReader& config, const ArchSpec& spec) {
  ExpertsSpec experts{
      .num_experts = config.get_int("num_local_experts", 128, 1, 1 << 14),
      .hidden_size = spec.intermediate_size,
      .shared_hidden_size =
          config.get_int("shared_intermediate_size", 3072, 1, 1 << 20)};
  experts.router = {.score = nn::RouterScore::sigmoid,
                    .num_chosen = config.get_int(
                        "num_experts_per_tok", 4, 1, experts.num_experts),
                    .normalize = true,
                    .scale = static_cast<float>(
                        config.get_float("routed_scaling_factor", 2.0))};
  experts.names.selection_bias = "e_score_correction_bias";
  if (config.get_float("swiglu_alpha", 1.702) != 1.702) {
    config.fail("swiglu_alpha", "1.702; others aren't supported");
  }
  const double limit = config.get_float("swiglu_limit", 7.0);
  if (limit <= 0) config.fail("swiglu_limit", "over 0");
  experts.clamp = {.gate_max = static_cast<float>(limit),
                   .up_limit = static_cast<float>(limit),
                   .up_offset = 1};
  return experts;
}

ArchSpec minimax_m3_text_spec(const ConfigReader& config,
                              Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 6144,
                          .num_layers = 60,
                          .intermediate_size = 3072,
                          .num_heads = 64,
                          .vocabulary_size = 200064,
                          .eps = 1e-6,
                          .num_kv_heads = 4,
                          .head_size = 128});
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  if (config.get_bool("use_gemma_norm", true)) spec.norm.weight_offset = 1;
  if (config.get_bool("use_qk_norm", true)) spec.qk_norm = QkNorm::per_head;
  spec.activation = kernels::Activation::gelu_fast;
  spec.names.mlp = "block_sparse_moe";

  const auto parameters = config.find_object("rope_parameters");
  double theta = config.get_float("rope_theta", 5e6);
  double share = config.get_float("partial_rotary_factor", 0.5);
  if (parameters) {
    theta = parameters->get_float("rope_theta", theta);
    share = parameters->get_float("partial_rotary_factor", share);
  }
  if (theta <= 0) config.fail("rope_theta", "a positive number");
  const auto given = config.find_int("rotary_dim", 2, spec.head_size);
  const int rotated =
      given ? *given : rotated_dimensions(config, spec.head_size, share);
  use_block_index(config, spec);
  nn::RopeOptions rope{
      .dimensions = rotated,
      .base = theta,
      .max_positions = config.get_int("max_position_embeddings", 1048576, 1)};
  spec.ropes = {nn::make_rope(rope, parameters)};
  for (const auto& layer : spec.layers) {
    if (!layer.block_index) continue;
    rope.dimensions = std::min(rotated, layer.block_index->head_size);
    spec.ropes.push_back(nn::make_rope(rope, parameters));
    break;
  }
  use_m3_experts(config, spec, read_m3_experts(config, spec));
  place_m3_weights(checkpoint, spec);
  stack_layers(checkpoint, spec, kNumberedParts);
  return spec;
}

}  // namespace

ArchSpec minimax_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  accept_only(config, "scoring_func", {"sigmoid"});
  if (config.get_int("shared_intermediate_size", 0) > 0) {
    config.fail("shared_intermediate_size", "0");
  }
  if (config.get_bool("use_qk_norm", true)) spec.qk_norm = QkNorm::over_heads;
  spec.names.mlp = "block_sparse_moe";
  const int rotated = config.require_int("rotary_dim", 2, spec.head_size);
  spec.ropes = {read_plain_rope(config, rotated, 0)};
  auto experts = read_experts(
      config,
      {.count = "num_local_experts", .hidden_size = "intermediate_size"});
  experts.router.score = nn::RouterScore::sigmoid;
  experts.router.normalize = true;
  experts.names.selection_bias = "e_score_correction_bias";
  use_experts(spec, experts);
  stack_layers(checkpoint, spec, kNumberedParts);
  return spec;
}

ArchSpec minimax_m3_vl_spec(const ConfigReader& config,
                            Checkpoint& checkpoint) {
  return text_half_spec(
      config.require_object("text_config"), checkpoint, minimax_m3_text_spec);
}

}  // namespace mlxlm
