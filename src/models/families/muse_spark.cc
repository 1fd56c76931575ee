// muse_spark: gates that mix the stream and what is added, answers normalized
// head by head and gated, experts that work on a smaller width.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

mx::array constant(float value) { return mx::array(value); }

// A published gate as the two factors that it stands for.
std::pair<mx::array, mx::array> mix_factors(const mx::array& gate) {
  auto w = mx::divide(mx::astype(gate, mx::float32), constant(0.3f));
  auto beta = mx::sigmoid(w);
  auto kept =
      mx::multiply(mx::sigmoid(mx::negative(w)), mx::add(beta, constant(1)));
  return {mx::sqrt(mx::maximum(kept, constant(1e-3f))), beta};
}

// Rows of a head for neighbours that turn together; published are halves.
mx::array neighbouring(const mx::array& rows, int head_size) {
  auto shape = rows.shape();
  auto halves = mx::unflatten(rows, 0, {-1, 2, head_size / 2});
  return mx::reshape(mx::swapaxes(halves, 1, 2), shape);
}

// Published NVFP4 bytes are read as MLX's words.
mx::array as_words(const mx::array& value) {
  return value.dtype() == mx::uint8
             ? mx::view(mx::contiguous(value), mx::uint32)
             : value;
}

// The e4m3 and e2m1 maxima, by which MLX divides its second scale.
constexpr float kGlobalScale = 6.0f * 448.0f;

void place_experts(Checkpoint& checkpoint, const std::string& experts) {
  auto& weights = checkpoint.weights;
  auto put = [&](const std::string& name, const mx::array& value) {
    weights.insert_or_assign(experts + name, value);
  };
  auto halves = [&](const std::string& name, int axis) {
    std::vector<mx::array> parts;
    auto value = take_weight(checkpoint, experts + name);
    if (!value) return parts;
    if (value->ndim() <= static_cast<std::size_t>(axis) ||
        value->shape(axis) % 2 != 0) {
      put(name, *value);
      return parts;
    }
    return mx::split(*value, 2, axis);
  };
  if (auto parts = halves("gate_up_proj", 1); !parts.empty()) {
    put("gate_proj.weight", as_words(parts[0]));
    put("up_proj.weight", as_words(parts[1]));
  }
  if (auto parts = halves("gate_up_proj_weight_scale", 1); !parts.empty()) {
    put("gate_proj.scales", parts[0]);
    put("up_proj.scales", parts[1]);
  }
  auto global = [](const mx::array& scale) {
    return mx::multiply(mx::flatten(scale), constant(kGlobalScale));
  };
  if (auto parts = halves("gate_up_proj_weight_scale_2", 1); !parts.empty()) {
    put("gate_proj.global_scale", global(parts[0]));
    put("up_proj.global_scale", global(parts[1]));
  }
  if (auto down = take_weight(checkpoint, experts + "down_proj")) {
    put("down_proj.weight", as_words(*down));
  }
  if (auto scale =
          take_weight(checkpoint, experts + "down_proj_weight_scale")) {
    put("down_proj.scales", *scale);
  }
  if (auto scale =
          take_weight(checkpoint, experts + "down_proj_weight_scale_2")) {
    put("down_proj.global_scale", global(*scale));
  }
  for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
    if (weights.contains(experts + part + ".scales")) {
      checkpoint.quantized.insert_or_assign(experts + part,
                                            Quantization{16, 4, "nvfp4"});
    }
  }
  // Of activations, which stay as they are.
  apply_rules(checkpoint, {{Action::drop, experts + "*_input_scale"}});
}

void join_projections(Checkpoint& checkpoint,
                      const std::string& attention,
                      int head_size) {
  auto& weights = checkpoint.weights;
  for (const char* tensor : {".weight", ".scales", ".biases"}) {
    std::vector<mx::array> parts;
    for (const char* name : {"q_proj", "k_proj", "v_proj", "gate_proj"}) {
      auto found = weights.find(attention + name + tensor);
      if (found != weights.end()) parts.push_back(found->second);
    }
    const bool fit = std::ranges::all_of(parts, [&](const mx::array& part) {
      return part.ndim() > 0 && part.shape(0) % head_size == 0;
    });
    if (parts.size() != 4 || !fit) continue;
    for (const char* name : {"q_proj", "k_proj", "v_proj", "gate_proj"}) {
      weights.erase(attention + name + tensor);
    }
    parts[0] = neighbouring(parts[0], head_size);
    parts[1] = neighbouring(parts[1], head_size);
    weights.insert_or_assign(attention + "qkvg_proj" + tensor,
                             mx::concatenate(parts, 0));
  }
}

// From the published layout; a converted checkpoint has the gates' factors.
void place_weights(Checkpoint& checkpoint, const ArchSpec& spec) {
  auto& weights = checkpoint.weights;
  for (const char* sense : {"audio_tower.*",
                            "vision_tower.*",
                            "vision_adapter.*",
                            "vision_projection.*"}) {
    apply_rules(checkpoint, {{Action::drop, std::string("model.") + sense}});
  }
  if (std::ranges::any_of(weights, [](const auto& entry) {
        return entry.first.ends_with("_alpha");
      })) {
    return;
  }
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto path = spec.layer_path(i);
    for (const auto& [gate, mix] :
         {std::pair("post_attention_residual_gate.gate", "add_attn"),
          std::pair("post_feedforward_residual_gate.gate", "add_ffn")}) {
      if (auto value = take_weight(checkpoint, path + gate)) {
        auto [alpha, beta] = mix_factors(*value);
        weights.insert_or_assign(path + mix + "_alpha", alpha);
        weights.insert_or_assign(path + mix + "_beta", beta);
      }
    }
    // Gains are published without their 1.
    for (const char* norm : {"input_layernorm",
                             "pre_feedforward_layernorm",
                             "post_feedforward_layernorm",
                             "mlp.pre_expert_norm",
                             "mlp.experts.post_expert_norm"}) {
      auto found = weights.find(path + norm + ".weight");
      if (found == weights.end()) continue;
      found->second =
          mx::add(mx::astype(found->second, mx::float32), constant(1));
    }
    place_experts(checkpoint, path + "mlp.experts.");
    join_projections(checkpoint, path + "self_attn.", spec.head_size);
  }
}

void set_muse_layers(const ConfigReader& config, ArchSpec& spec) {
  const auto num_layers = spec.layers.size();
  if (!config.has("layer_types")) config.fail("layer_types", "a list");
  read_layer_types(config, spec, config.require_int("sliding_window", 1));
  hold_windows(spec);
  const auto thetas = config.find_floats("layer_rope_theta");
  if (!thetas || thetas->size() != num_layers) {
    config.fail("layer_rope_theta", "a number for each layer");
  }
  for (std::size_t i = 0; i < num_layers; ++i) {
    spec.layers[i].rope = (*thetas)[i] == 0 ? -1 : 0;
  }
  if (config.get_int("num_shared_experts", 0) != 0) {
    config.fail("num_shared_experts", "0; others aren't supported");
  }
  for (const auto& type : config.find_strings("mlp_layer_types")
                              .value_or(std::vector<std::string>{})) {
    if (type != "sparse") {
      config.fail("mlp_layer_types", "\"sparse\" for every layer");
    }
  }
}

void set_muse_names(ArchSpec& spec) {
  spec.prefix = "model.language_model.";
  auto& names = spec.names;
  names.qkv = "qkvg_proj";
  names.attention_output_norm = "post_attention_norm";  // without parameters
  names.mlp_norm = "pre_feedforward_layernorm";
  names.mlp_output_norm = "post_feedforward_norm";  // the same
  names.attention_mix = "add_attn";
  names.mlp_mix = "add_ffn";
}

ExpertsSpec read_muse_experts(const ConfigReader& config, float multiplier) {
  auto experts = read_experts(config, {.count = "num_local_experts"});
  experts.latent_size = config.require_int("moe_hidden_size", 1, 1 << 20);
  experts.router.score = nn::RouterScore::sigmoid;
  experts.router.normalize = true;
  experts.router.logit_scale = multiplier;
  experts.router.scale =
      static_cast<float>(config.get_float("routed_scaling_factor", 1));
  auto& names = experts.names;
  names.selection_bias = "gate.e_score_correction_bias";
  names.stack = "experts";
  names.to_latent = "pre_expert_proj";
  names.from_latent = "post_expert_proj";
  names.latent_norm = "pre_expert_norm";
  names.each_gain = "experts.post_expert_norm.weight";
  names.output_gain = "post_feedforward_layernorm.weight";
  return experts;
}

}  // namespace

ArchSpec muse_spark_spec(const ConfigReader& outer, Checkpoint& checkpoint) {
  const auto config = outer.require_object("text_config");
  // Of images, which aren't read.
  outer.find_object("vision_config");
  for (const char* key :
       {"image_token_id", "out_hidden_size", "projector_hidden_size"}) {
    outer.find_int(key);
  }
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::required,
                         {.names = {.intermediate_size = nullptr}});
  set_muse_names(spec);
  spec.final_norm_spec = spec.norm;
  const NormSpec plain{.weight = false, .eps = spec.norm.eps};
  spec.embedding_norm = plain;
  spec.qk_norm = QkNorm::per_head;
  spec.qk_norm_spec = plain;
  spec.answer_norm = true;
  spec.output_gate = OutputGate::after_values;
  spec.attention_scale *=
      static_cast<float>(config.get_float("qk_scale_factor", 5.4730064863875));
  const NormSpec added{
      .weight = false,
      .eps = static_cast<float>(config.require_float("post_norm_eps"))};
  spec.attention_output_norm_spec = spec.mlp_output_norm_spec = added;
  const auto rope = config.require_object("rope_parameters");
  spec.ropes = {nn::make_rope({.dimensions = spec.head_size,
                               .base = rope.require_float("rope_theta"),
                               .traditional = true},
                              std::nullopt)};
  spec.logit_scale =
      static_cast<float>(config.require_float("output_multiplier"));
  spec.logit_softcap =
      static_cast<float>(config.require_float("final_logit_softcapping"));
  set_muse_layers(config, spec);
  auto experts = read_muse_experts(config, spec.logit_scale);
  experts.each_norm = added;
  use_experts(spec, experts);
  place_weights(checkpoint, spec);
  return spec;
}

}  // namespace mlxlm
