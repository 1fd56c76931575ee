// spark2_5, muse_glimmer: windows in most layers, attention with a gate.
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

// Rope of layers of this type, from rope_parameters.
nn::Rope rope_of_type(const ConfigReader& config,
                      const char* type,
                      int head_size) {
  const auto parameters =
      config.require_object("rope_parameters").find_object(type);
  if (!parameters)
    return nn::make_rope({.dimensions = head_size}, std::nullopt);
  const double theta = parameters->get_float("rope_theta", 10000);
  if (theta <= 0) parameters->fail("rope_theta", "a positive number");
  const double share = parameters->get_float("partial_rotary_factor", 1);
  const int dimensions = rotated_dimensions(*parameters, head_size, share);
  if (dimensions % 2 != 0) {
    parameters->fail("partial_rotary_factor", "one that gives an even number");
  }
  return nn::make_rope({.dimensions = dimensions, .base = theta}, std::nullopt);
}

}  // namespace

ArchSpec spark2_5_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec =
      read_sizes(config, KvHeads::required, HeadSize::required, {.eps = 1e-6});
  require_text(config, "hidden_act", "gelu");
  require_text(config, "gate_attn_act_mode", "sigmoid");
  require_true(config, "headwise_attn_output_gate");
  if (spec.context_tokens == 0) spec.context_tokens = 8192;
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  read_biases(config, spec);
  spec.embedding_name = "embedding";
  spec.names.qkv = "q_k_v_proj";
  spec.names.o = "out_proj";
  spec.names.output_gate = "g_proj";
  spec.output_gate = OutputGate::per_head;
  spec.activation = kernels::Activation::gelu;
  config.require_int("sliding_window", 1);
  read_windows(config, spec, 4);
  for (const char* type : {"full_attention", "sliding_attention"}) {
    spec.ropes.push_back(rope_of_type(config, type, spec.head_size));
  }
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 1 : 0;
  apply_rules(checkpoint,
              {{WeightRule::Action::rename,
                "model.embed_tokens.*",
                "model.embedding.*"}});
  return spec;
}

ArchSpec muse_glimmer_spec(const ConfigReader& outer, Checkpoint& checkpoint) {
  auto fields = outer.raw();
  if (auto text = outer.find_object("text_config")) fields.update(text->raw());
  const auto config = outer.with_values(fields);
  auto spec = read_sizes(config,
                         KvHeads::required,
                         HeadSize::optional,
                         {.hidden_size = 6656,
                          .num_layers = 52,
                          .intermediate_size = 19968,
                          .num_heads = 32,
                          .vocabulary_size = 202048,
                          .eps = 1e-5,
                          .num_kv_heads = 2,
                          .head_size = 128});
  if (spec.context_tokens == 0) spec.context_tokens = 131072;
  require_text(config, "hidden_activation", "silu");
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.final_norm_spec = spec.norm;
  spec.qk_norm = QkNorm::per_head;
  spec.qk_norm_spec = spec.norm;
  spec.qk_norm_spec->weight = false;
  spec.embedding_norm = spec.norm;
  spec.norm.weight_offset = 1;
  add_output_norms(spec);
  auto output_norm = spec.norm;
  output_norm.eps = static_cast<float>(config.get_float("post_norm_eps", 1e-8));
  spec.attention_output_norm_spec = spec.mlp_output_norm_spec = output_norm;
  spec.names.output_gate = "gate_proj";
  spec.output_gate = OutputGate::full;
  spec.attention_scale *=
      static_cast<float>(config.get_float("qk_scale_factor", 3.87));
  spec.logit_scale = static_cast<float>(
      config.get_float("output_multiplier", 0.19611613513818404));
  spec.logit_softcap =
      static_cast<float>(config.get_float("final_logit_softcapping", 20));
  if (spec.logit_softcap <= 0) {
    config.fail("final_logit_softcapping", "a positive number");
  }
  if (!config.has("sliding_window")) fields["sliding_window"] = 2048;
  read_windows(config, spec, 4);
  const auto parameters = config.find_object("rope_parameters");
  const auto theta =
      parameters ? parameters->find_float("rope_theta") : std::nullopt;
  const double base = theta ? *theta : config.get_float("rope_theta", 500000);
  if (base <= 0) config.fail("rope_theta", "a positive number");
  spec.ropes = {nn::make_rope({.dimensions = spec.head_size, .base = base},
                              std::nullopt)};
  // A layer whose theta is 0 has no positions; without the list those that see
  // everything.
  const auto thetas = config.find_floats("layer_rope_theta");
  if (thetas && thetas->size() != spec.layers.size()) {
    config.fail("layer_rope_theta", "a list with a number for each layer");
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    const bool turn = thetas ? (*thetas)[i] != 0 : layer.window_tokens > 0;
    if (!turn) layer.rope = -1;
  }
  apply_rules(
      checkpoint,
      {{WeightRule::Action::drop, "vision_*"},
       {WeightRule::Action::rename, "language_model.*", "*"},
       {WeightRule::Action::rename, "model.language_model.*", "model.*"}});
  return spec;
}

}  // namespace mlxlm
