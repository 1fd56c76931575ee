#include "models/text_half.h"

#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

const std::vector<WeightRule> kOtherSenses{
    {Action::drop, "*vision_tower*"},
    {Action::drop, "*vision_model*"},
    {Action::drop, "*multi_modal_projector*"},
    {Action::drop, "*mm_projector.*"},
    {Action::drop, "*patch_merge_mlp*"},
    {Action::drop, "*audio_tower*"},
    {Action::drop, "*embed_audio*"},
    {Action::drop, "*embed_vision*"},
    {Action::drop, "*vision_embedder*"},
    {Action::drop, "visual.*"},
    {Action::drop, "model.visual.*"}};

const std::vector<WeightRule> kToTextModel{
    {Action::rename, "model.language_model.*", "model.*"},
    {Action::rename, "language_model.*", "*"}};

const std::string kPrefix = "language_model.";

}  // namespace

ArchSpec text_half_spec(const ConfigReader& text_config,
                        Checkpoint& checkpoint,
                        MakeSpec make_spec) {
  drop_other_senses(checkpoint);
  name_as_text_model(checkpoint);
  auto spec = make_spec(text_config, checkpoint);
  rename_prefix(checkpoint, "", kPrefix);
  spec.prefix = kPrefix + spec.prefix;
  spec.head_name = kPrefix + spec.head_name;
  return spec;
}

void name_as_text_model(Checkpoint& checkpoint) {
  apply_rules(checkpoint, kToTextModel);
}

void drop_other_senses(Checkpoint& checkpoint) {
  apply_rules(checkpoint, kOtherSenses);
}

void choose_no_caches(ArchSpec& spec) {
  for (auto& layer : spec.layers) layer.rotating_cache = false;
  spec.own_caches = false;
}

ConfigReader text_config_or_all(const ConfigReader& config) {
  return config.find_object("text_config").value_or(config);
}

}  // namespace mlxlm
