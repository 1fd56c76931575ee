// Experts behind attention that sees windows in some layers and whose answers
// pass a gate: afmoe, step3p5, laguna; and mimo_v2_flash without the gate.
#include <algorithm>
#include <cmath>
#include <sstream>

#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

// The largest x for which min(silu(x), limit) isn't yet the limit.
float silu_limit(double limit) {
  double x = limit + 1;
  for (int i = 0; i < 60; ++i) {
    const double sigmoid = 1 / (1 + std::exp(-x));
    const double slope = sigmoid * (1 + x * (1 - sigmoid));
    x -= (x * sigmoid - limit) / slope;
  }
  return static_cast<float>(x);
}

// Limits of silu(gate) and of up, one for each layer; 0 or missing: none.
std::vector<kernels::GateClamp> read_limits(const ConfigReader& config,
                                            const char* key,
                                            std::size_t num_layers) {
  std::vector<kernels::GateClamp> clamps(num_layers);
  const auto* limits = config.find(key);
  if (limits == nullptr) return clamps;
  if (!limits->is_array()) config.fail(key, "a list of numbers");
  for (std::size_t i = 0; i < std::min(num_layers, limits->size()); ++i) {
    const auto& limit = (*limits)[i];
    if (limit.is_null()) continue;
    if (!limit.is_number()) config.fail(key, "a list of numbers");
    const double value = limit.get<double>();
    if (value <= 0) continue;
    clamps[i] = {.gate_max = silu_limit(value),
                 .up_limit = static_cast<float>(value)};
  }
  return clamps;
}

// Numbers between commas.
std::vector<int> read_numbers(const ConfigReader& config, const char* key) {
  std::vector<int> numbers;
  std::istringstream text(config.require_string(key));
  for (std::string part; std::getline(text, part, ',');) {
    std::size_t end = 0;
    try {
      numbers.push_back(std::stoi(part, &end));
    } catch (const std::exception&) {
      config.fail(key, "layers, separated by commas");
    }
  }
  return numbers;
}

bool is_norm(std::string_view name) {
  return name.ends_with(".weight") &&
         name.find("norm") != std::string_view::npos;
}

// Published norms lack 1.
void place_step_weights(Checkpoint& checkpoint, const ArchSpec& spec) {
  auto& weights = checkpoint.weights;
  const bool published =
      std::any_of(weights.begin(), weights.end(), [](const auto& entry) {
        const auto& name = entry.first;
        return name.find(".moe.") != std::string::npos ||
               (name.find(".share_expert.") != std::string::npos &&
                name.find(".mlp.share_expert.") == std::string::npos);
      });
  apply_rules(checkpoint, {{Action::drop, "*.mtp*"}});
  drop_layers_from(checkpoint,
                   spec.prefix + spec.layers_name + ".",
                   static_cast<int>(spec.layers.size()));
  if (!published) return;
  apply_rules(
      checkpoint,
      {{Action::rename, "*.moe.gate_proj.*", "*.mlp.switch_mlp.gate_proj.*"},
       {Action::rename, "*.moe.up_proj.*", "*.mlp.switch_mlp.up_proj.*"},
       {Action::rename, "*.moe.down_proj.*", "*.mlp.switch_mlp.down_proj.*"},
       {Action::rename, "*.moe.gate.*", "*.mlp.gate.gate.*"},
       {Action::rename, "*.moe.router_bias", "*.mlp.gate.router_bias"},
       {Action::rename, "*.share_expert.*", "*.mlp.share_expert.*"}});
  for (auto& [name, value] : weights) {
    if (is_norm(name)) value = mx::add(value, mx::array(1.0f, value.dtype()));
  }
}

nn::Rope laguna_rope(const ConfigReader& config,
                     const char* layer_type,
                     int head_size) {
  const auto all = config.find_object("rope_parameters");
  const auto own = all ? all->find_object(layer_type) : std::nullopt;
  double share = config.get_float("partial_rotary_factor", 1.0);
  double theta = 10000;
  if (own) {
    share = own->get_float("partial_rotary_factor", share);
    theta = own->get_float("rope_theta", theta);
  }
  return nn::make_rope(
      {.dimensions = rotated_dimensions(config, head_size, share),
       .base = theta,
       .max_positions = config.get_int("max_position_embeddings", 262144, 1)},
      own);
}

}  // namespace

ArchSpec afmoe_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 2048,
                          .num_layers = 32,
                          .intermediate_size = 6144,
                          .num_heads = 32,
                          .vocabulary_size = 200192,
                          .eps = 1e-5,
                          .num_kv_heads = 4,
                          .head_size = 64});
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qk_norm = QkNorm::per_head;
  spec.output_gate = OutputGate::full;
  spec.names.output_gate = "gate_proj";
  spec.names.attention_output_norm = "post_attention_layernorm";
  spec.names.mlp_norm = "pre_mlp_layernorm";
  spec.names.mlp_output_norm = "post_mlp_layernorm";
  if (config.get_bool("mup_enabled", true)) {
    spec.embedding_scale = std::sqrt(static_cast<float>(spec.hidden_size));
  }
  spec.ropes = {
      read_rope(config,
                spec.head_size,
                10000,
                false,
                config.get_int("max_position_embeddings", 131072, 1))};
  read_layer_types(config, spec, config.get_int("sliding_window", 2048, 1));
  hold_windows(spec);
  for (auto& layer : spec.layers) {
    if (layer.window_tokens == 0) layer.rope = -1;
  }
  ExpertsSpec experts;
  experts.num_experts = config.get_int("num_experts", 128, 1, 1 << 14);
  experts.hidden_size =
      config.get_int("moe_intermediate_size", 1024, 1, 1 << 20);
  experts.shared_hidden_size =
      experts.hidden_size * config.get_int("num_shared_experts", 1, 0, 1 << 10);
  auto& router = experts.router;
  router.num_chosen =
      config.get_int("num_experts_per_tok", 8, 1, experts.num_experts);
  accept_only(config, "score_func", {"sigmoid", "softmax"});
  if (config.get_string("score_func", "sigmoid") == "sigmoid") {
    router.score = nn::RouterScore::sigmoid;
  }
  router.normalize =
      config.get_bool("route_norm", true) && router.num_chosen > 1;
  router.scale = static_cast<float>(config.get_float("route_scale", 2.826));
  read_groups(config, experts);
  experts.names.router = "router.gate";
  experts.names.selection_bias = "expert_bias";
  experts.names.stack = "experts";
  use_experts(spec, experts, config.get_int("num_dense_layers", 2));
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec step3p5_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(
      config,
      KvHeads::required,
      HeadSize::required,
      {.eps = 1e-5, .names = {.num_kv_heads = "num_attention_groups"}});
  spec.tied_head = config.get_bool("tie_word_embeddings", false) &&
                   !checkpoint.weights.contains("lm_head.weight");
  spec.qk_norm = QkNorm::per_head;
  if (config.get_bool("use_head_wise_attn_gate", true)) {
    spec.output_gate = OutputGate::per_head;
    spec.names.output_gate = "g_proj";
  }
  const int window = config.get_int("sliding_window", 512, 1);
  const auto types = config.find_strings("layer_types");
  if (types) {
    read_layer_types(config, spec, window);
  } else {
    for (std::size_t i = 0; i < spec.layers.size(); i += 2) {
      spec.layers[i].window_tokens = window;
    }
  }
  hold_windows(spec);
  const auto other = config.find_object("attention_other_setting");
  const auto* theta = config.find("rope_theta");
  const bool own_thetas = theta != nullptr && theta->is_array();
  const auto thetas = own_thetas
                          ? *config.find_floats("rope_theta")
                          : std::vector<double>(spec.layers.size(),
                                                read_rope_theta(config, 10000));
  if (thetas.size() < spec.layers.size()) {
    config.fail("rope_theta", "a number, or one for each layer");
  }
  const auto shares = config.find_floats("partial_rotary_factors");
  const auto scaled = config.find_strings("yarn_only_types");
  const auto num_layers = spec.layers.size();
  const auto routed = read_limits(config, "swiglu_limits", num_layers);
  const auto shared = read_limits(config, "swiglu_limits_shared", num_layers);
  for (std::size_t i = 0; i < num_layers; ++i) {
    auto& layer = spec.layers[i];
    if (layer.window_tokens > 0 && other) {
      layer.num_heads = other->require_int("num_attention_heads", 1, 1 << 14);
      layer.num_kv_heads =
          other->require_int("num_attention_groups", 1, 1 << 14);
    }
    const double share = shares && i < shares->size() ? (*shares)[i] : 1.0;
    const std::string type = types ? (*types)[i] : "full_attention";
    const bool scale =
        !scaled || scaled->empty() ||
        std::find(scaled->begin(), scaled->end(), type) != scaled->end();
    layer.rope = static_cast<int>(i);
    spec.ropes.push_back(nn::make_rope(
        {.dimensions = rotated_dimensions(config, spec.head_size, share),
         .base = thetas[i],
         .max_positions = config.get_int("max_position_embeddings", 262144, 1)},
        scale ? find_rope_scaling(config) : std::nullopt));
    layer.clamp = shared[i];
  }
  ExpertsSpec experts;
  experts.num_experts = config.get_int("moe_num_experts", 288, 1, 1 << 14);
  experts.hidden_size =
      config.get_int("moe_intermediate_size", 1280, 1, 1 << 20);
  experts.shared_hidden_size =
      config.get_int("share_expert_dim", 1280, 1, 1 << 20);
  experts.router = {
      .score = nn::RouterScore::sigmoid,
      .num_chosen = config.get_int("moe_top_k", 8, 1, experts.num_experts),
      .normalize = config.get_bool("norm_expert_weight", true),
      .scale = static_cast<float>(
          config.get_float("moe_router_scaling_factor", 3.0))};
  experts.names = {.router = "gate.gate",
                   .selection_bias = "gate.router_bias",
                   .shared = "share_expert"};
  std::vector<bool> sparse(num_layers, !config.has("moe_layers_enum"));
  sparse[0] = false;
  if (config.has("moe_layers_enum")) {
    for (int layer : read_numbers(config, "moe_layers_enum")) {
      if (static_cast<std::size_t>(layer) < num_layers) sparse[layer] = true;
    }
  }
  for (std::size_t i = 0; i < num_layers; ++i) {
    if (!sparse[i]) continue;
    spec.layers[i].experts = experts;
    spec.layers[i].experts->clamp = routed[i];
  }
  place_step_weights(checkpoint, spec);
  return spec;
}

ArchSpec laguna_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 2048,
                          .num_layers = 40,
                          .intermediate_size = 8192,
                          .num_heads = 48,
                          .vocabulary_size = 100352,
                          .eps = 1e-6,
                          .num_kv_heads = 8,
                          .head_size = 128});
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qkv_bias = config.get_bool("qkv_bias", false);
  spec.o_bias = config.get_bool("attention_bias", false);
  spec.qk_norm = QkNorm::per_head;
  if (config.get_bool("gating", true)) {
    spec.output_gate = OutputGate::per_head;
    spec.gate_function = nn::GateFunction::softplus;
    spec.gate_bias = false;
    spec.names.output_gate = "g_proj";
  }
  spec.ropes = {laguna_rope(config, "full_attention", spec.head_size),
                laguna_rope(config, "sliding_attention", spec.head_size)};
  read_layer_types(config, spec, config.get_int("sliding_window", 512, 1));
  hold_windows(spec);
  const auto num_layers = spec.layers.size();
  const auto heads = config.find_ints("num_attention_heads_per_layer", 1);
  const auto kinds = config.find_strings("mlp_layer_types");
  for (const auto& [key, size] :
       {std::pair("num_attention_heads_per_layer",
                  heads ? heads->size() : num_layers),
        std::pair("mlp_layer_types", kinds ? kinds->size() : num_layers)}) {
    if (size != num_layers) {
      config.fail(key, "a list of num_hidden_layers entries");
    }
  }
  ExpertsSpec experts;
  experts.num_experts = config.get_int("num_experts", 256, 1, 1 << 14);
  experts.hidden_size =
      config.get_int("moe_intermediate_size", 512, 1, 1 << 20);
  experts.shared_hidden_size =
      config.get_int("shared_expert_intermediate_size", 512, 1, 1 << 20);
  accept_only(config, "moe_router_score_func", {"sigmoid", "sqrtsoftplus"});
  const bool sigmoid =
      config.get_string("moe_router_score_func", "sigmoid") == "sigmoid";
  experts.router = {.score = sigmoid ? nn::RouterScore::sigmoid
                                     : nn::RouterScore::sqrt_softplus,
                    .num_chosen = config.get_int(
                        "num_experts_per_tok", 8, 1, experts.num_experts),
                    .normalize = true,
                    .scale = static_cast<float>(
                        config.get_float("moe_routed_scaling_factor", 1.0)),
                    .softcap = static_cast<float>(
                        config.get_float("moe_router_logit_softcapping", 0.0))};
  experts.names = {.router = "gate.proj",
                   .selection_bias = "gate.e_score_correction_bias",
                   .shared = "shared_expert"};
  for (std::size_t i = 0; i < num_layers; ++i) {
    auto& layer = spec.layers[i];
    layer.rope = layer.window_tokens > 0 ? 1 : 0;
    if (heads) layer.num_heads = (*heads)[i];
    if (kinds ? (*kinds)[i] == "sparse" : i > 0) layer.experts = experts;
  }
  apply_rules(checkpoint,
              {{Action::rename, "language_model.*", "*"},
               {Action::rename, "*.mlp.gate.weight", "*.mlp.gate.proj.weight"},
               {Action::rename,
                "*.mlp.experts.e_score_correction_bias",
                "*.mlp.gate.e_score_correction_bias"}});
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec mimo_v2_flash_spec(const ConfigReader& config,
                            Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::required,
                         {.eps_name = "layernorm_epsilon"});
  const auto num_layers = spec.layers.size();
  const auto windowed = config.find_bools("hybrid_layer_pattern");
  const auto sparse = config.find_bools("moe_layer_freq");
  for (const auto& [key, list] : {std::pair("hybrid_layer_pattern", &windowed),
                                  std::pair("moe_layer_freq", &sparse)}) {
    if (!*list || (*list)->size() != num_layers) {
      config.fail(key, "a list of num_hidden_layers times 0 or 1");
    }
  }
  if (auto factor = config.find_float("attention_value_scale")) {
    spec.value_factor = static_cast<float>(*factor);
  }
  const double share = config.require_float("partial_rotary_factor");
  auto size = [&](const char* key) {
    return config.require_int(key, 1, 1 << 14);
  };
  const int window_head_size = size("swa_head_dim");
  auto rope = [&](int head_size, const char* theta) {
    return nn::make_rope(
        {.dimensions = rotated_dimensions(config, head_size, share),
         .base = config.require_float(theta)},
        std::nullopt);
  };
  spec.ropes = {rope(spec.head_size, "rope_theta"),
                rope(window_head_size, "swa_rope_theta")};
  const int window = size("sliding_window_size");
  const bool window_sinks = config.require_bool("add_swa_attention_sink_bias");
  const bool full_sinks = config.require_bool("add_full_attention_sink_bias");
  const auto experts = read_routed_experts(config);
  for (std::size_t i = 0; i < num_layers; ++i) {
    auto& layer = spec.layers[i];
    if ((*windowed)[i]) {
      layer.window_tokens = window;
      layer.rope = 1;
      layer.num_heads = size("swa_num_attention_heads");
      layer.num_kv_heads = size("swa_num_key_value_heads");
      layer.head_size = window_head_size;
      layer.value_size = size("swa_v_head_dim");
    } else {
      layer.value_size = size("v_head_dim");
    }
    const bool sinks = (*windowed)[i] ? window_sinks : full_sinks;
    if (sinks) layer.sinks = "attention_sink_bias";
    if ((*sparse)[i]) layer.experts = experts;
  }
  hold_windows(spec);
  apply_rules(checkpoint, {{Action::drop, "model.mtp*"}});
  stack_layers(checkpoint, spec);
  return spec;
}

}  // namespace mlxlm
