// gemma3n, gemma4 (text alone, or within the larger model): late layers read
// the keys and values of earlier ones, every layer has a part of a second
// embedding.
#include <cmath>
#include <map>

#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

// The last `count` layers read the keys of the last layer of their kind that
// has its own.
void share_keys(const ConfigReader& config, ArchSpec& spec, int count) {
  const int num_layers = static_cast<int>(spec.layers.size());
  std::map<bool, int> latest;
  for (int i = 0; i < num_layers; ++i) {
    const bool windowed = spec.layers[i].window_tokens > 0;
    if (i < num_layers - count) {
      latest[windowed] = i;
    } else if (auto source = latest.find(windowed); source != latest.end()) {
      spec.layers[i].keys_of = source->second;
    } else {
      config.fail("num_kv_shared_layers",
                  "so many that a layer of each kind has keys of its own");
    }
  }
}

// What both have in common beside their windows and sizes.
void set_gemma(ArchSpec& spec) {
  add_output_norms(spec);
  spec.activation = kernels::Activation::gelu_tanh;
  spec.embedding_scale =
      static_cast<float>(std::sqrt(double(spec.hidden_size)));
  spec.attention_scale = 1;
  spec.qk_norm = QkNorm::per_head;
  spec.value_norm = true;
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 1 : 0;
  hold_windows(spec);
}

void drop_shared_projections(const ArchSpec& spec, Checkpoint& checkpoint) {
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if (spec.layers[i].keys_of < 0) continue;
    const auto path = spec.layer_path(static_cast<int>(i)) + "self_attn.";
    apply_rules(checkpoint,
                {{Action::drop, path + "k_proj.*"},
                 {Action::drop, path + "v_proj.*"},
                 {Action::drop, path + "k_norm.*"}});
  }
}

// --- gemma3n ---

void read_sparsity(const ConfigReader& config, ArchSpec& spec) {
  const auto shares = config.find_floats("activation_sparsity_pattern");
  if (!shares) return;
  if (shares->size() != spec.layers.size()) {
    config.fail("activation_sparsity_pattern", "a number for each layer");
  }
  for (std::size_t i = 0; i < shares->size(); ++i) {
    if ((*shares)[i] < 0 || (*shares)[i] >= 1) {
      config.fail("activation_sparsity_pattern", "numbers from 0 to 1");
    }
    spec.layers[i].sparse_share = (*shares)[i];
  }
}

// intermediate_size is one number or one for each layer.
ArchSpec read_gemma3n_sizes(const ConfigReader& config) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::required,
                         {.names = {.intermediate_size = nullptr}});
  const auto sizes = config.find_ints("intermediate_size", 1);
  const auto num_layers = spec.layers.size();
  if (!sizes || (sizes->size() != 1 && sizes->size() != num_layers)) {
    config.fail("intermediate_size", "a number, or one for each layer");
  }
  for (std::size_t i = 0; i < num_layers; ++i) {
    spec.layers[i].intermediate_size = (*sizes)[sizes->size() == 1 ? 0 : i];
    if (spec.layers[i].intermediate_size > 1 << 20) {
      config.fail("intermediate_size", "smaller");
    }
  }
  return spec;
}

AltUpSpec read_altup(const ConfigReader& config) {
  AltUpSpec altup;
  altup.num_streams = config.require_int("altup_num_inputs", 1, 64);
  altup.active =
      config.require_int("altup_active_idx", 0, altup.num_streams - 1);
  altup.max_coefficient =
      static_cast<float>(config.get_float("altup_coef_clip", 0));
  altup.scale_output = config.require_bool("altup_correct_scale");
  altup.laurel_rank = config.require_int("laurel_rank", 1, 1 << 16);
  return altup;
}

// --- gemma4 ---

// Rope of layers of this kind from rope_parameters, or what stands for them.
nn::Rope gemma4_rope(const ConfigReader& config,
                     const char* kind,
                     int head_size,
                     bool full) {
  const nlohmann::json known = {
      {"rope_theta", full ? 1e6 : 1e4},
      {"rope_type", full ? "proportional" : "default"},
      {"partial_rotary_factor", full ? 0.25 : 1.0}};
  const auto parameters = config.find_object("rope_parameters");
  auto own = parameters ? parameters->find_object(kind)
                        : std::optional<ConfigReader>(ConfigReader(known));
  const double theta = own ? own->get_float("rope_theta", 1e4) : 1e4;
  if (theta <= 0) own->fail("rope_theta", "a positive number");
  return nn::make_rope(
      {.dimensions = head_size,
       .base = theta,
       .traditional = config.get_bool("rope_traditional", false),
       .max_positions = config.get_int("max_position_embeddings", 131072, 1)},
      own);
}

void set_gemma4_layers(const ConfigReader& config, ArchSpec& spec) {
  const int num_shared = config.get_int(
      "num_kv_shared_layers", 20, 0, static_cast<int>(spec.layers.size()) - 1);
  const int first_shared = static_cast<int>(spec.layers.size()) - num_shared;
  const bool wide = config.get_bool("use_double_wide_mlp", true);
  const bool keys_are_values = config.get_bool("attention_k_eq_v", false);
  const int full_head_size = config.get_int("global_head_dim", 512, 0, 1 << 14);
  const int full_kv_heads = config.get_int(
      "num_global_key_value_heads", spec.num_kv_heads, 1, spec.num_heads);
  if (spec.num_heads % full_kv_heads != 0) {
    config.fail("num_global_key_value_heads", "a divisor of the heads");
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    if (num_shared > 0 && static_cast<int>(i) >= first_shared && wide) {
      layer.intermediate_size = 2 * spec.intermediate_size;
    }
    if (layer.window_tokens > 0) continue;
    layer.head_size = full_head_size;
    layer.attention_scale = 1;
    layer.keys_are_values = keys_are_values;
    if (keys_are_values) layer.num_kv_heads = full_kv_heads;
  }
  share_keys(config, spec, num_shared);
  spec.ropes = {
      gemma4_rope(config,
                  "full_attention",
                  full_head_size > 0 ? full_head_size : spec.head_size,
                  true),
      gemma4_rope(config, "sliding_attention", spec.head_size, false)};
}

// Experts besides the MLP, each part with norms of its own.
void use_gemma4_experts(const ConfigReader& config,
                        ArchSpec& spec,
                        Checkpoint& checkpoint) {
  auto experts = read_experts(config, {.chosen = "top_k_experts"});
  experts.router.score = nn::RouterScore::chosen_softmax;
  experts.names = {.router = "router.proj",
                   .stack = "experts.switch_glu",
                   .shared = "mlp",
                   .router_scale = "router.scale",
                   .expert_scale = "router.per_expert_scale",
                   .chosen_norm = "pre_feedforward_layernorm_2",
                   .chosen_output_norm = "post_feedforward_layernorm_2",
                   .shared_output_norm = "post_feedforward_layernorm_1"};
  spec.names.mlp = "";
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    auto& layer = spec.layers[i];
    experts.shared_hidden_size = layer.intermediate_size > 0
                                     ? layer.intermediate_size
                                     : spec.intermediate_size;
    layer.experts = experts;
    const auto path = spec.layer_path(i) + "experts";
    split_joined_experts(checkpoint, path, path + ".switch_glu", {});
  }
}

}  // namespace

ArchSpec gemma3n_spec(const ConfigReader& outer, Checkpoint& checkpoint) {
  const auto config = outer.require_object("text_config");
  drop_other_senses(checkpoint);
  auto spec = read_gemma3n_sizes(config);
  if (!config.has("layer_types")) config.fail("layer_types", "a list");
  read_layer_types(config, spec);
  set_gemma(spec);
  read_sparsity(config, spec);
  share_keys(
      config,
      spec,
      config.require_int(
          "num_kv_shared_layers", 0, static_cast<int>(spec.layers.size()) - 1));
  spec.prefix = "model.language_model.";
  spec.tied_head = true;
  spec.altup = read_altup(config);
  spec.per_layer_input = PerLayerInputSpec{
      config.require_int("hidden_size_per_layer_input", 1, 1 << 16),
      config.require_int("vocab_size_per_layer_input", 1, 1 << 27)};
  spec.logit_softcap =
      static_cast<float>(config.get_float("final_logit_softcapping", 0));
  const auto scaling = config.find_object("rope_scaling");
  if (scaling && !scaling->raw().empty()) {
    throw Error(ErrorKind::unsupported,
                "config.json: rope_scaling isn't supported for gemma3n");
  }
  const double local_theta = config.require_float("rope_local_base_freq");
  if (local_theta <= 0) config.fail("rope_local_base_freq", "over 0");
  spec.ropes = {
      read_plain_rope(config, spec.head_size, 0),
      nn::make_rope({.dimensions = spec.head_size, .base = local_theta},
                    std::nullopt)};
  drop_shared_projections(spec, checkpoint);
  return spec;
}

ArchSpec gemma4_text_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 1536,
                          .num_layers = 35,
                          .intermediate_size = 6144,
                          .num_heads = 8,
                          .vocabulary_size = 262144,
                          .eps = 1e-6,
                          .num_kv_heads = 1,
                          .head_size = 256});
  if (spec.context_tokens == 0) spec.context_tokens = 131072;
  // rope_parameters say it for each kind of layer.
  config.find_float("global_partial_rotary_factor");
  config.find_float("partial_rotary_factor");
  const int window = config.get_int("sliding_window", 512, 1);
  if (config.has("layer_types")) {
    read_layer_types(config, spec, window);
  } else {
    set_window_pattern(
        spec, window, config.get_int("sliding_window_pattern", 5, 1));
  }
  set_gemma4_layers(config, spec);
  set_gemma(spec);
  spec.names.scalar = "layer_scalar";
  if (config.get_bool("enable_moe_block", false)) {
    use_gemma4_experts(config, spec, checkpoint);
  }
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  const int side_size =
      config.get_int("hidden_size_per_layer_input", 256, 0, 1 << 16);
  const int side_vocabulary =
      config.get_int("vocab_size_per_layer_input", 262144, 1, 1 << 27);
  if (side_size > 0) {
    spec.per_layer_input = PerLayerInputSpec{side_size, side_vocabulary};
  }
  // Null turns it off.
  const bool given_as_null = config.raw().contains("final_logit_softcapping");
  spec.logit_softcap = static_cast<float>(
      config.get_float("final_logit_softcapping", given_as_null ? 0 : 30));
  for (const char* part : {"input", "output"}) {
    for (const char* bound : {"min", "max"}) {
      apply_rules(
          checkpoint,
          {{Action::drop, "*" + std::string(part) + "_" + bound + "*"}});
    }
  }
  drop_shared_projections(spec, checkpoint);
  return spec;
}

ArchSpec gemma4_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  const auto text = config.find_object("text_config");
  auto values = text ? text->raw() : nlohmann::json::object();
  values["vocab_size"] = config.get_int("vocab_size", 262144, 1);
  if (!values.contains("num_attention_heads")) {
    values["num_attention_heads"] = 8;
  }
  if (!values.contains("num_key_value_heads")) {
    values["num_key_value_heads"] = 1;
  }
  return text_half_spec(
      text.value_or(config).with_values(values), checkpoint, gemma4_text_spec);
}

}  // namespace mlxlm
