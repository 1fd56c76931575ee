// Where checkpoints have the head for predicting several tokens, which the
// families' own functions drop: beside a layer after the last (deepseek_v3 and
// others; within kimi_k25 and kimi_vl, too), or apart (mimo, mimo_v2_flash,
// exaone_moe, qwen3_next, qwen3_5).
#include <algorithm>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using Action = WeightRule::Action;

// "<from>0." becomes the layer after the last, which counts from now on; it is
// there already where `from` is "". Returns its path. Throws Error{weights} if
// the checkpoint has nothing of it.
std::string add_layer(json& config,
                      Checkpoint& checkpoint,
                      const std::string& from = "") {
  const int num_layers =
      ConfigReader(config, checkpoint.source + ": config.json")
          .require_int("num_hidden_layers", 1, 1 << 14);
  config["num_hidden_layers"] = num_layers + 1;
  const auto path = "model.layers." + std::to_string(num_layers) + ".";
  const auto given = from.empty() ? path : from + "0.";
  const bool has_head = std::ranges::any_of(
      checkpoint.weights,
      [&](const auto& entry) { return entry.first.starts_with(given); });
  if (!has_head) {
    throw Error(ErrorKind::weights,
                checkpoint.source + ": the draft head's tensors, " + given +
                    "*, are missing; many converted checkpoints are without");
  }
  if (given != path) rename_prefix(checkpoint, given, path);
  return path;
}

// One entry more where the configuration has a list for each layer.
void append(json& config, const char* key, const json& value) {
  auto list = config.find(key);
  if (list != config.end() && list->is_array()) list->push_back(value);
}

// The part that is about text, where there are others.
json& text_of(json& config) {
  const auto text = config.find("text_config");
  return text != config.end() && text->is_object() ? *text : config;
}

// A head under "mtp.", with norms and projection beside its layers.
void place_apart(json& config, Checkpoint& checkpoint) {
  const auto path = add_layer(config, checkpoint, "mtp.layers.");
  rename_prefix(checkpoint, "mtp.pre_fc_norm_embedding", path + "enorm");
  rename_prefix(checkpoint, "mtp.pre_fc_norm_hidden", path + "hnorm");
  rename_prefix(checkpoint, "mtp.fc", path + "eh_proj");
  rename_prefix(checkpoint, "mtp.norm", path + "shared_head.norm");
}

}  // namespace

DraftHeadSpec place_deepseek_head(json& config, Checkpoint& checkpoint) {
  const auto path = add_layer(config, checkpoint);
  // Copies of the model's own.
  apply_rules(checkpoint,
              {{Action::drop, path + "embed_tokens.*"},
               {Action::drop, path + "shared_head.head.*"}});
  return {};
}

DraftHeadSpec place_kimi_head(json& config, Checkpoint& checkpoint) {
  name_as_text_model(checkpoint);
  return place_deepseek_head(text_of(config), checkpoint);
}

DraftHeadSpec place_mimo_head(json& config, Checkpoint& checkpoint) {
  const auto path = add_layer(config, checkpoint, "model.mtp_layers.");
  rename_prefix(checkpoint, path + "token_layernorm", path + "enorm");
  rename_prefix(checkpoint, path + "hidden_layernorm", path + "hnorm");
  rename_prefix(checkpoint, path + "input_proj", path + "eh_proj");
  rename_prefix(
      checkpoint, path + "final_layernorm", path + "shared_head.norm");
  return {.state_first = true};
}

DraftHeadSpec place_mimo_v2_head(json& config, Checkpoint& checkpoint) {
  const auto path = add_layer(config, checkpoint, "model.mtp.layers.");
  rename_prefix(checkpoint,
                path + "pre_mlp_layernorm",
                path + "post_attention_layernorm");
  rename_prefix(
      checkpoint, path + "final_layernorm", path + "shared_head.norm");
  append(config, "hybrid_layer_pattern", 1);
  append(config, "moe_layer_freq", 0);
  return {};
}

DraftHeadSpec place_exaone_moe_head(json& config, Checkpoint& checkpoint) {
  place_apart(config, checkpoint);
  const auto types = config.find("mtp_layer_types");
  append(config,
         "layer_types",
         types != config.end() && types->is_array() && !types->empty()
             ? types->front()
             : json("full_attention"));
  append(config, "is_moe_layer", false);
  return {};
}

DraftHeadSpec place_qwen_hybrid_head(json& config, Checkpoint& checkpoint) {
  place_apart(text_of(config), checkpoint);
  return {.attention = true};
}

}  // namespace mlxlm
