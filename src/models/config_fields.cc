#include "models/config_fields.h"

#include <algorithm>
#include <cmath>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

// Bounds that keep products of two sizes within an int.
constexpr int kMaxWidth = 1 << 20;
constexpr int kMaxLayers = 1 << 14;
constexpr int kMaxHeads = 1 << 14;
constexpr int kMaxHeadSize = 1 << 14;
constexpr int kMaxVocabulary = 1 << 27;

int read_size(const ConfigReader& config,
              const char* key,
              int fallback,
              int max) {
  if (key == nullptr) return std::max(fallback, 1);
  return fallback == 0 ? config.require_int(key, 1, max)
                       : config.get_int(key, fallback, 1, max);
}

int read_head_size(const ConfigReader& config,
                   HeadSize kind,
                   int fallback,
                   const FieldNames& names,
                   const ArchSpec& spec) {
  int size = 0;
  if (kind == HeadSize::required) {
    size = config.require_int("head_dim", 1, kMaxHeadSize);
  } else if (kind == HeadSize::optional) {
    size = config.get_int("head_dim", fallback, 0, kMaxHeadSize);
  }
  if (size == 0) size = spec.hidden_size / spec.num_heads;
  if (size == 0) {
    config.fail(names.num_heads,
                "at most hidden_size = " + std::to_string(spec.hidden_size));
  }
  return size;
}

}  // namespace

ArchSpec read_sizes(const ConfigReader& config,
                    KvHeads kv_heads,
                    HeadSize head_size,
                    const FieldDefaults& defaults) {
  ArchSpec spec;
  const auto& names = defaults.names;
  spec.hidden_size =
      read_size(config, names.hidden_size, defaults.hidden_size, kMaxWidth);
  spec.intermediate_size = read_size(
      config, names.intermediate_size, defaults.intermediate_size, kMaxWidth);
  spec.vocabulary_size = read_size(
      config, names.vocabulary_size, defaults.vocabulary_size, kMaxVocabulary);
  spec.num_heads =
      read_size(config, names.num_heads, defaults.num_heads, kMaxHeads);
  int default_kv_heads = defaults.num_kv_heads;
  if (default_kv_heads == 0 &&
      (kv_heads == KvHeads::as_heads || names.num_kv_heads == nullptr)) {
    default_kv_heads = spec.num_heads;
  }
  spec.num_kv_heads =
      read_size(config, names.num_kv_heads, default_kv_heads, kMaxHeads);
  if (spec.num_heads % spec.num_kv_heads != 0) {
    config.fail(
        names.num_kv_heads != nullptr ? names.num_kv_heads : names.num_heads,
        "a divisor of " + std::string(names.num_heads) + " = " +
            std::to_string(spec.num_heads));
  }
  spec.head_size =
      read_head_size(config, head_size, defaults.head_size, names, spec);
  spec.attention_scale =
      static_cast<float>(std::pow(double(spec.head_size), -0.5));
  spec.norm.eps = static_cast<float>(
      defaults.eps_name == nullptr ? defaults.eps
      : defaults.eps == 0          ? config.require_float(defaults.eps_name)
                          : config.get_float(defaults.eps_name, defaults.eps));
  if (names.context_tokens != nullptr) {
    spec.context_tokens = config.get_int(names.context_tokens, 0);
  }
  spec.layers.resize(
      read_size(config, names.num_layers, defaults.num_layers, kMaxLayers));
  return spec;
}

std::optional<ConfigReader> find_rope_scaling(const ConfigReader& config) {
  auto scaling = config.find_object("rope_scaling");
  if (scaling && !scaling->raw().empty()) return scaling;
  auto parameters = config.find_object("rope_parameters");
  if (parameters && !parameters->raw().empty()) return parameters;
  return std::nullopt;
}

void accept_only(const ConfigReader& config,
                 const char* key,
                 std::initializer_list<std::string_view> values) {
  const auto given = config.find_string(key);
  if (!given) return;
  std::string wanted;
  for (const auto& value : values) {
    if (*given == value) return;
    wanted += (wanted.empty() ? "\"" : "\" or \"") + std::string(value);
  }
  config.fail(key, wanted + "\"; others aren't supported");
}

double read_rope_theta(const ConfigReader& config, double theta) {
  auto value = config.find_float("rope_theta");
  if (!value) {
    if (auto parameters = config.find_object("rope_parameters")) {
      value = parameters->find_float("rope_theta");
    }
  }
  if (!value && theta != 0) value = theta;
  if (!value || *value <= 0) config.fail("rope_theta", "a positive number");
  return *value;
}

nn::Rope read_plain_rope(const ConfigReader& config,
                         int dimensions,
                         double theta,
                         bool traditional) {
  return nn::make_rope({.dimensions = dimensions,
                        .base = read_rope_theta(config, theta),
                        .traditional = traditional},
                       std::nullopt);
}

nn::Rope read_nested_rope(const ConfigReader& config,
                          int dimensions,
                          double theta) {
  theta = read_rope_theta(config, theta);
  if (auto parameters = config.find_object("rope_parameters")) {
    theta = read_rope_theta(*parameters, theta);
  }
  return nn::make_rope({.dimensions = dimensions, .base = theta}, std::nullopt);
}

nn::Rope read_scaled_rope(const ConfigReader& config,
                          int dimensions,
                          double theta,
                          bool traditional,
                          std::optional<int> max_positions) {
  return nn::make_rope({.dimensions = dimensions,
                        .base = read_rope_theta(config, theta),
                        .traditional = traditional,
                        .max_positions = max_positions},
                       find_rope_scaling(config));
}

nn::Rope read_rope(const ConfigReader& config,
                   int dimensions,
                   double theta,
                   bool traditional,
                   std::optional<int> max_positions) {
  return read_scaled_rope(config,
                          dimensions,
                          theta,
                          config.get_bool("rope_traditional", traditional),
                          max_positions);
}

void read_granite_factors(const ConfigReader& config, ArchSpec& spec) {
  const double logits_scaling = config.require_float("logits_scaling");
  if (logits_scaling == 0) {
    config.fail("logits_scaling", "a number other than 0");
  }
  auto factor = [&](const char* key) {
    return static_cast<float>(config.require_float(key));
  };
  spec.logit_scale = static_cast<float>(1 / logits_scaling);
  spec.attention_scale = factor("attention_multiplier");
  spec.embedding_scale = factor("embedding_multiplier");
  spec.residual_scale = factor("residual_multiplier");
}

int read_step_rank(const ConfigReader& config,
                   const char* key,
                   int hidden_size) {
  const auto* value = config.find(key);
  if (value == nullptr || *value == "auto") return (hidden_size + 15) / 16;
  return config.require_int(key, 1, 1 << 20);
}

void read_step_limit(const ConfigReader& config,
                     const char* key,
                     Mamba2Spec& mixer) {
  const auto limits = config.find_floats(key);
  if (!limits) return;
  if (limits->size() != 2 || !((*limits)[0] <= (*limits)[1])) {
    config.fail(key, "a list of the smallest and the largest step");
  }
  mixer.min_step = static_cast<float>((*limits)[0]);
  mixer.max_step = static_cast<float>((*limits)[1]);
}

int rotated_dimensions(const ConfigReader& config,
                       int head_size,
                       double partial_rotary_factor) {
  const double dimensions = head_size * partial_rotary_factor;
  if (dimensions < 2 || dimensions > head_size) {
    config.fail("partial_rotary_factor",
                "a share of the head size " + std::to_string(head_size));
  }
  return static_cast<int>(dimensions);
}

void read_layer_types(const ConfigReader& config,
                      ArchSpec& spec,
                      int window_tokens) {
  const auto types = config.find_strings("layer_types");
  const auto window = window_tokens > 0 ? std::optional(window_tokens)
                                        : config.find_int("sliding_window");
  if (!types) return;
  if (types->size() != spec.layers.size()) {
    config.fail("layer_types",
                "a list of num_hidden_layers = " +
                    std::to_string(spec.layers.size()) + " types");
  }
  for (std::size_t i = 0; i < types->size(); ++i) {
    if ((*types)[i] == "full_attention") continue;
    if ((*types)[i] != "sliding_attention") {
      throw Error(ErrorKind::unsupported,
                  "config.json: layer type \"" + (*types)[i] +
                      "\" isn't supported here; full_attention and "
                      "sliding_attention are");
    }
    if (!window || *window == 0) {
      config.fail("sliding_window",
                  "a positive integer, for layer_types has sliding_attention");
    }
    spec.layers[i].window_tokens = *window;
  }
}

void read_windows(const ConfigReader& config, ArchSpec& spec, int pattern) {
  if (config.has("layer_types")) {
    read_layer_types(config, spec);
    hold_windows(spec);
  } else {
    set_window_pattern(spec, config.require_int("sliding_window", 1), pattern);
  }
}

void hold_windows(ArchSpec& spec) {
  for (auto& layer : spec.layers) {
    layer.rotating_cache = layer.window_tokens > 0;
  }
  spec.own_caches = true;
}

void set_window_pattern(ArchSpec& spec, int window_tokens, int pattern) {
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if ((i + 1) % pattern != 0) spec.layers[i].window_tokens = window_tokens;
  }
  hold_windows(spec);
}

void require_false(const ConfigReader& config, const char* key) {
  if (config.get_bool(key, false)) {
    throw Error(ErrorKind::unsupported,
                "config.json: " + std::string(key) + " isn't supported");
  }
}

void require_true(const ConfigReader& config, const char* key) {
  if (!config.get_bool(key, true)) {
    throw Error(ErrorKind::unsupported,
                "config.json: a model without " + std::string(key) +
                    " isn't supported");
  }
}

void require_text(const ConfigReader& config,
                  const char* key,
                  std::string_view value) {
  const auto text = config.get_string(key, std::string(value));
  if (text != value) {
    throw Error(ErrorKind::unsupported,
                "config.json: " + std::string(key) + " \"" + text +
                    "\" isn't supported; \"" + std::string(value) + "\" is");
  }
}

void read_biases(const ConfigReader& config, ArchSpec& spec) {
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.mlp_bias = config.get_bool("mlp_bias", false);
}

void add_output_norms(ArchSpec& spec) {
  spec.names.attention_output_norm = "post_attention_layernorm";
  spec.names.mlp_norm = "pre_feedforward_layernorm";
  spec.names.mlp_output_norm = "post_feedforward_layernorm";
}

void use_output_norms_only(ArchSpec& spec) {
  add_output_norms(spec);
  spec.names.attention_norm = "";
  spec.names.mlp_norm = "";
}

void use_gpt_names(ArchSpec& spec) {
  spec.prefix = "transformer.";
  spec.embedding_name = "wte";
  spec.layers_name = "h";
  spec.norm_name = "ln_f";
  spec.names.attention = "attn";
  spec.names.attention_norm = "ln_1";
  spec.names.mlp_norm = "ln_2";
}

void use_layer_norm(ArchSpec& spec) {
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.bias = true;
}

}  // namespace mlxlm
