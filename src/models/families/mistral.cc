// ministral3, and the models around a text model: mistral3, llava, pixtral.
#include "models/config_fields.h"
#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {

ArchSpec ministral3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  const auto rope = config.require_object("rope_parameters");
  spec.ropes = {nn::make_rope(
      {.dimensions = spec.head_size,
       .base = rope.require_float("rope_theta"),
       .max_positions = config.find_int("max_position_embeddings")},
      rope)};
  spec.query_scale = {
      .beta = static_cast<float>(rope.require_float("llama_4_scaling_beta")),
      .length = rope.require_int("original_max_position_embeddings", 1)};
  read_layer_types(config, spec);
  hold_windows(spec);
  apply_rules(checkpoint, {{WeightRule::Action::drop, "*activation_scale*"}});
  return spec;
}

ArchSpec mistral3_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  const auto text = config.require_object("text_config");
  auto values = text.raw();
  if (!values.contains("tie_word_embeddings")) {
    values["tie_word_embeddings"] = false;
  }
  const auto type = values.value("model_type", nlohmann::json());
  auto spec =
      text_half_spec(text.with_values(values),
                     checkpoint,
                     type == "ministral3" ? ministral3_spec : llama_spec);
  choose_no_caches(spec);
  return spec;
}

ArchSpec pixtral_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  const auto text = config.require_object("text_config");
  auto values = text.raw();
  values["tie_word_embeddings"] = false;
  if (!values.contains("num_attention_heads")) {
    values["num_attention_heads"] = 32;
  }
  auto spec = text_half_spec(text.with_values(values), checkpoint, llama_spec);
  choose_no_caches(spec);
  return spec;
}

}  // namespace mlxlm
