// Mamba among attention, with and without experts: jamba, granitemoehybrid,
// nemotron_h.
#include <algorithm>
#include <functional>
#include <map>
#include <string>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

constexpr int kMaxSize = 1 << 14;
constexpr std::size_t kMaxLayers = 1 << 14;

// A layer is mixer 0 or attends, as its type says.
void set_layers(const ConfigReader& config,
                const char* key,
                const std::vector<std::string>& types,
                ArchSpec& spec) {
  const auto num_layers = spec.layers.size();
  if (types.size() != num_layers) {
    config.fail(key,
                "a list of num_hidden_layers = " + std::to_string(num_layers) +
                    " types");
  }
  for (std::size_t i = 0; i < num_layers; ++i) {
    if (types[i] == "mamba") {
      spec.layers[i].mixer = 0;
    } else if (types[i] != "attention") {
      config.fail(key, "a list of \"mamba\" and \"attention\"");
    }
  }
  spec.own_caches = true;
}

std::vector<std::string> jamba_types(const ConfigReader& config,
                                     int num_layers) {
  const int period = config.require_int("attn_layer_period", 1);
  const int offset = config.require_int("attn_layer_offset", 0);
  if (auto types = config.find_strings("layers_block_type")) return *types;
  std::vector<std::string> types;
  for (int i = 0; i < num_layers; ++i) {
    types.push_back(i % period == offset ? "attention" : "mamba");
  }
  return types;
}

// Mamba-2's sizes where their names begin with "mamba_".
Mamba2Spec read_granite_mamba(const ConfigReader& config, float eps) {
  auto size = [&](const char* key) {
    return config.require_int(key, 1, kMaxSize);
  };
  const bool bias = config.require_bool("mamba_proj_bias");
  Mamba2Spec mamba{.name = "mamba",
                   .num_heads = size("mamba_n_heads"),
                   .head_size = size("mamba_d_head"),
                   .state_size = size("mamba_d_state"),
                   .num_groups = size("mamba_n_groups"),
                   .num_taps = config.require_int("mamba_d_conv", 2, 1 << 10),
                   .in_bias = bias,
                   .out_bias = bias,
                   .conv_bias = config.require_bool("mamba_conv_bias"),
                   .min_step = 0.001f,
                   .max_step = 100.0f,
                   .norm_eps = eps};
  if (mamba.num_heads % mamba.num_groups != 0) {
    config.fail("mamba_n_groups", "a divisor of mamba_n_heads");
  }
  read_step_limit(config, "time_step_limit", mamba);
  return mamba;
}

// As published, gate and up projections are in one tensor, and the shared
// expert stands beside the others. Without others it is the MLP.
void place_granite_experts(Checkpoint& checkpoint, ArchSpec& spec) {
  const bool mixes = spec.layers[0].experts.has_value();
  const bool joined =
      mixes || std::ranges::any_of(checkpoint.weights, [](const auto& entry) {
        return entry.first.find("shared_mlp.") != std::string::npos;
      });
  if (joined) spec.names.gate_up = "gate_up_proj";
  const std::string to =
      mixes ? "*." + spec.names.mlp + ".shared_mlp." : "*.mlp.";
  apply_rules(
      checkpoint,
      {{Action::rename, "*.shared_mlp.input_linear.*", to + "gate_up_proj.*"},
       {Action::rename, "*.shared_mlp.output_linear.*", to + "down_proj.*"}});
  if (!mixes) return;
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto block = spec.layer_path(i) + spec.names.mlp;
    split_joined_experts(checkpoint,
                         block,
                         block + ".switch_mlp",
                         {"input_linear.weight", "output_linear.weight"});
  }
}

// One letter for each layer: M(amba), * for attention, E(xperts), - for an MLP.
std::string read_pattern(const ConfigReader& config) {
  const char* const kPattern = "hybrid_override_pattern";
  if (config.has(kPattern) && config.raw().at(kPattern).is_string()) {
    return *config.find_string(kPattern);
  }
  std::string pattern;
  if (auto letters = config.find_strings(kPattern)) {
    for (const auto& each : *letters) pattern += each;
    return pattern;
  }
  auto types = config.find_strings("layer_types");
  if (auto own = config.find_strings("layers_block_type")) types = own;
  if (!types) config.fail("layers_block_type", "a list of the layers' types");
  const std::map<std::string, char, std::less<>> letters{
      {"full_attention", '*'},
      {"attention", '*'},
      {"linear_attention", 'M'},
      {"mamba", 'M'},
      {"conv", 'M'},
      {"moe", 'E'},
      {"mlp", '-'}};
  for (const auto& type : *types) {
    auto found = letters.find(type);
    if (found == letters.end()) {
      config.fail("layers_block_type",
                  "a list of \"mamba\", \"attention\", \"moe\", \"mlp\"");
    }
    pattern += found->second;
  }
  return pattern;
}

ExpertsSpec read_nemotron_experts(const ConfigReader& config) {
  auto experts = read_routed_experts(config);
  if (!experts) config.fail("n_routed_experts", "the number of experts");
  if (experts->shared_hidden_size > 0) {
    experts->shared_hidden_size =
        config.require_int("moe_shared_expert_intermediate_size", 1, 1 << 20);
  }
  experts->latent_size = config.get_int("moe_latent_size", 0, 0, 1 << 20);
  return *experts;
}

Mamba2Spec read_nemotron_mamba(const ConfigReader& config, float eps) {
  const bool bias = config.require_bool("mamba_proj_bias");
  Mamba2Spec mamba{
      .num_heads = config.require_int("mamba_num_heads", 1, kMaxSize),
      .head_size = config.require_int("mamba_head_dim", 1, kMaxSize),
      .state_size = config.require_int("ssm_state_size", 1, kMaxSize),
      .num_groups = config.require_int("n_groups", 1, kMaxSize),
      .num_taps = config.require_int("conv_kernel", 2, 1 << 10),
      .in_bias = bias,
      .out_bias = bias,
      .conv_bias = config.require_bool("use_conv_bias"),
      .norm_eps = eps};
  if (mamba.num_heads % mamba.num_groups != 0) {
    config.fail("n_groups", "a divisor of mamba_num_heads");
  }
  mamba.norm_groups = mamba.num_groups;
  read_step_limit(config, "time_step_limit", mamba);
  return mamba;
}

}  // namespace

ArchSpec jamba_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  const int num_layers = static_cast<int>(spec.layers.size());
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.norm_name = "final_layernorm";
  spec.names.mlp = "feed_forward";
  spec.names.mlp_norm = "pre_ff_layernorm";
  spec.mixers = {MambaSpec{
      .name = "mamba",
      .inner_size =
          config.require_int("mamba_expand", 1, 1 << 8) * spec.hidden_size,
      .state_size = config.require_int("mamba_d_state", 1, kMaxSize),
      .num_taps = config.require_int("mamba_d_conv", 2, 1 << 10),
      .step_rank = read_step_rank(config, "mamba_dt_rank", spec.hidden_size),
      .bias = config.get_bool("mamba_proj_bias", false),
      .conv_bias = config.get_bool("mamba_conv_bias", true),
      .norm_eps = spec.norm.eps,
      .step_norm = "dt_layernorm",
      .b_norm = "b_layernorm",
      .c_norm = "c_layernorm"}};
  set_layers(
      config, "layers_block_type", jamba_types(config, num_layers), spec);
  for (auto& layer : spec.layers) layer.rope = -1;  // Mamba knows the order

  const int period = config.require_int("expert_layer_period", 1);
  const int offset = config.require_int("expert_layer_offset", 0, 1 << 20);
  if (config.require_int("num_experts", 0, kMaxSize) > 1) {
    auto experts = read_experts(config, {.hidden_size = "intermediate_size"});
    experts.router.score = nn::RouterScore::chosen_softmax;
    experts.names.router = "router";
    for (int i = 0; i < num_layers; ++i) {
      if ((i + offset) % period == 0) spec.layers[i].experts = experts;
    }
  }
  stack_layers(checkpoint, spec);
  return spec;
}

ArchSpec granitemoehybrid_spec(const ConfigReader& config,
                               Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  read_granite_factors(config, spec);
  const auto types = config.find_strings("layer_types");
  if (!types) config.fail("layer_types", "a list");
  const bool recurrent = std::ranges::find(*types, "mamba") != types->end();
  if (recurrent) spec.mixers = {read_granite_mamba(config, spec.norm.eps)};
  set_layers(config, "layer_types", *types, spec);
  accept_only(config, "position_embedding_type", {"rope", "nope"});
  if (config.get_string("position_embedding_type", "rope") == "nope") {
    for (auto& layer : spec.layers) layer.rope = -1;
  } else {
    spec.ropes = {read_nested_rope(config, spec.head_size, 10000)};
  }
  if (config.get_int("num_local_experts", 0, 0, kMaxSize) > 0) {
    auto experts = read_experts(
        config,
        {.count = "num_local_experts", .hidden_size = "intermediate_size"});
    experts.router.score = nn::RouterScore::chosen_softmax;
    experts.names.router = "router.layer";
    experts.names.shared = "shared_mlp";
    experts.shared_hidden_size =
        config.require_int("shared_intermediate_size", 1, 1 << 20);
    spec.names.mlp = "block_sparse_moe";
    use_experts(spec, experts);
  } else {
    spec.mlp_bias = config.get_bool("mlp_bias", false);
  }
  place_granite_experts(checkpoint, spec);
  return spec;
}

ArchSpec nemotron_h_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  const auto pattern = read_pattern(config);
  if (pattern.empty() || pattern.size() > kMaxLayers) {
    config.fail("hybrid_override_pattern",
                "one letter for each of up to " + std::to_string(kMaxLayers) +
                    " layers");
  }
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.num_layers = 1, .eps_name = "layer_norm_epsilon"});
  spec.prefix = "backbone.";
  spec.embedding_name = "embeddings";
  spec.norm_name = "norm_f";
  // Each layer is one part, whose name is the same whatever it is.
  spec.names.attention = spec.names.mlp = "mixer";
  spec.names.attention_norm = spec.names.mlp_norm = "norm";
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  spec.mlp_bias = config.require_bool("mlp_bias");
  spec.gated_mlp = false;
  spec.activation = kernels::Activation::relu_squared;
  // Without effect, as in the reference: mamba_proj_bias and time_step_limit
  // count.
  config.get_bool("use_bias", false);
  config.find_float("time_step_min");
  config.find_float("time_step_max");
  spec.mixers = {read_nemotron_mamba(config, spec.norm.eps)};
  spec.layers.assign(pattern.size(), {.rope = -1});
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    auto& layer = spec.layers[i];
    const char kind = pattern[i];
    if (std::string_view("M*E-").find(kind) == std::string_view::npos) {
      config.fail("hybrid_override_pattern", "made of M, *, E and -");
    }
    layer.mixer = kind == 'M' ? 0 : kind == '*' ? kAttention : kNoMixer;
    layer.mlp = layer.mixer == kNoMixer;
    if (kind == 'E') layer.experts = read_nemotron_experts(config);
  }
  apply_rules(
      checkpoint,
      {{Action::drop, "mtp.*"},
       {Action::rename, "*.switch_mlp.fc1.*", "*.switch_mlp.up_proj.*"},
       {Action::rename, "*.switch_mlp.fc2.*", "*.switch_mlp.down_proj.*"}});
  stack_layers(
      checkpoint, spec, {{"up_proj", "up_proj"}, {"down_proj", "down_proj"}});
  spec.own_caches = true;
  return spec;
}

}  // namespace mlxlm
