// hunyuan (experts, keys passed on between layers), hunyuan_v1_dense.
#include <algorithm>
#include <cmath>

#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

// rope_scaling.alpha stretches the base; neither the type nor the factor
// counts.
nn::Rope stretched_rope(const ConfigReader& scaling,
                        int head_size,
                        double base) {
  scaling.require_string("type");
  scaling.require_float("factor");
  const double alpha = scaling.require_float("alpha");
  if (alpha <= 0) scaling.fail("alpha", "a positive number");
  const double dimensions = std::max(head_size, 3);
  base *= std::pow(alpha, dimensions / (dimensions - 2));
  return nn::make_rope({.dimensions = head_size, .base = base}, std::nullopt);
}

void use_qk_norms_after_rope(ArchSpec& spec) {
  spec.qk_norm = QkNorm::per_head;
  spec.qk_norm_after_rope = true;
  spec.names.q_norm = "query_layernorm";
  spec.names.k_norm = "key_layernorm";
}

// A number for all layers or one for each.
std::vector<int> read_for_layers(const ConfigReader& config,
                                 const char* key,
                                 std::size_t num_layers) {
  auto values = config.find_ints(key, 1);
  if (!values || (values->size() != 1 && values->size() != num_layers)) {
    config.fail(key, "a positive number, or one for each layer");
  }
  if (values->size() == 1) values->resize(num_layers, values->front());
  return *values;
}

// "qkv_proj" (for each key head its queries, its key, its value) and
// "gate_and_up_proj" (up first) as they are published.
void split_published(const ArchSpec& spec, Checkpoint& checkpoint) {
  const int group = spec.num_heads / spec.num_kv_heads;
  std::vector<std::string> names;
  for (const auto& [name, value] : checkpoint.weights) names.push_back(name);
  for (const auto& name : names) {
    auto put = [&](const char* from, const char* to, const mx::array& rows) {
      auto renamed = name;
      renamed.replace(name.find(from), std::string(from).size(), to);
      checkpoint.weights.insert_or_assign(renamed, rows);
    };
    const auto value = checkpoint.weights.at(name);
    if (value.ndim() != 2) continue;
    if (name.ends_with("qkv_proj.weight")) {
      if (value.shape(0) % (spec.num_kv_heads * (group + 2)) != 0) continue;
      auto heads = mx::unflatten(value, 0, {spec.num_kv_heads, group + 2, -1});
      auto parts = mx::split(heads, mx::Shape{group, group + 1}, 1);
      put("qkv_proj", "q_proj", mx::flatten(parts[0], 0, 2));
      put("qkv_proj", "k_proj", mx::flatten(parts[1], 0, 2));
      put("qkv_proj", "v_proj", mx::flatten(parts[2], 0, 2));
    } else if (name.ends_with("gate_and_up_proj.weight")) {
      if (value.shape(0) % 2 != 0) continue;
      auto parts = mx::split(value, 2, 0);
      put("gate_and_up_proj", "up_proj", parts[0]);
      put("gate_and_up_proj", "gate_proj", parts[1]);
    } else {
      continue;
    }
    checkpoint.weights.erase(name);
  }
}

void use_hunyuan_experts(const ConfigReader& config, ArchSpec& spec) {
  const auto num_layers = spec.layers.size();
  const bool shared = config.require_bool("use_mixed_mlp_moe");
  const auto chosen = read_for_layers(config, "moe_topk", num_layers);
  const auto num_shared =
      read_for_layers(config, "num_shared_expert", num_layers);
  const auto sizes =
      config.has("moe_intermediate_size")
          ? read_for_layers(config, "moe_intermediate_size", num_layers)
          : std::vector<int>(num_layers, spec.intermediate_size);
  ExpertsSpec experts{
      .num_experts = config.require_int("num_experts", 1, 1 << 14),
      .names = {.router = "gate.wg", .shared = "shared_mlp"}};
  if (experts.num_experts == 1) return;
  for (std::size_t i = 0; i < num_layers; ++i) {
    if (chosen[i] > experts.num_experts) {
      config.fail("moe_topk", "at most num_experts");
    }
    if (sizes[i] > 1 << 20) config.fail("moe_intermediate_size", "smaller");
    if (num_shared[i] > 1 << 10) config.fail("num_shared_expert", "smaller");
    experts.router.num_chosen = chosen[i];
    experts.hidden_size = sizes[i];
    experts.shared_hidden_size =
        shared ? spec.intermediate_size * num_shared[i] : 0;
    spec.layers[i].experts = experts;
  }
}

}  // namespace

ArchSpec hunyuan_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  // The reference has no head of its own, whatever the configuration says.
  spec.tied_head = config.get_bool("tie_word_embeddings", false) ||
                   !checkpoint.weights.contains("lm_head.weight");
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  if (config.require_bool("use_qk_norm")) use_qk_norms_after_rope(spec);
  spec.ropes = {stretched_rope(config.require_object("rope_scaling"),
                               spec.head_size,
                               read_rope_theta(config, 0))};
  const int period = config.require_int("cla_share_factor", 1);
  if (config.require_bool("use_cla")) {
    for (std::size_t i = 0; i < spec.layers.size(); ++i) {
      spec.layers[i].projects_no_keys = i % period != 0;
    }
  }
  use_hunyuan_experts(config, spec);
  split_published(spec, checkpoint);
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec hunyuan_v1_dense_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  if (config.get_bool("use_qk_norm", true)) use_qk_norms_after_rope(spec);
  const auto scaling = config.find_object("rope_scaling");
  spec.ropes = {scaling && !scaling->raw().empty()
                    ? stretched_rope(*scaling,
                                     spec.head_size,
                                     read_rope_theta(config, 10000))
                    : read_plain_rope(config, spec.head_size, 10000)};
  if (spec.context_tokens == 0) spec.context_tokens = 32768;
  return spec;
}

}  // namespace mlxlm
