#include "models/make_model.h"

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "core/nearest.h"
#include "load/adapters.h"
#include "models/decoder.h"
#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

const Family& find_family(const std::string& model_type) {
  for (const auto& family : families()) {
    if (family.model_type == model_type) return family;
  }
  const auto known = supported_model_types();
  std::string message = "model type \"" + model_type + "\" isn't supported";
  if (auto nearest = nearest_name(model_type, known)) {
    message += "; the nearest name is \"" + *nearest + "\"";
  }
  message += "; supported are";
  for (const auto& name : known) message += " " + name;
  throw Error(ErrorKind::unsupported, message);
}

// Tables some checkpoints carry that are computed here, and the head of models
// that use the embedding for it.
void drop_unused(Checkpoint& checkpoint, const ArchSpec& spec) {
  drop_weights(checkpoint, [&](std::string_view name) {
    return name.find("rotary_emb.inv_freq") != std::string_view::npos ||
           (spec.tied_head && name.starts_with(spec.head_name + "."));
  });
}

ArchSpec spec_with_draft_head(const Family& family,
                              const std::string& source,
                              Checkpoint& checkpoint) {
  auto config = checkpoint.config;
  const ConfigReader reader(config, source);
  const bool none =
      text_config_or_all(reader).find_int("num_nextn_predict_layers") == 0;
  if (family.place_draft_head == nullptr || none) {
    std::string message =
        none ? source + ": num_nextn_predict_layers is 0: this model"
             : "model type \"" + std::string(family.model_type) + "\"";
    message += " has no draft head; types that may have one are";
    for (const auto& name : model_types_with_draft_head())
      message += " " + name;
    throw Error(ErrorKind::unsupported, message);
  }
  auto head = family.place_draft_head(config, checkpoint);
  auto spec = family.make_spec(reader, checkpoint);
  head.layer = std::move(spec.layers.back());
  if (head.attention) head.layer.mixer = kAttention;
  spec.layers.pop_back();
  spec.draft_head = std::move(head);
  return spec;
}

// The adapter of the options, if they name one; a full fine-tuning replaces
// the checkpoint's tensors at once.
std::optional<Adapter> use_adapter(Checkpoint& checkpoint,
                                   const LoadOptions& options) {
  if (options.adapter_path.empty()) return std::nullopt;
  auto adapter = load_adapter(options.adapter_path);
  if (adapter.kind != AdapterKind::full) return adapter;
  check_full_adapter(adapter, checkpoint.weights);
  for (auto& [name, tensor] : adapter.tensors) {
    checkpoint.weights.insert_or_assign(name, tensor);
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::string> supported_model_types() {
  std::vector<std::string> names;
  for (const auto& family : families()) names.emplace_back(family.model_type);
  return names;
}

std::vector<std::string> model_types_with_draft_head() {
  std::vector<std::string> names;
  for (const auto& family : families()) {
    if (family.place_draft_head != nullptr) {
      names.emplace_back(family.model_type);
    }
  }
  return names;
}

ModelPtr make_model(Checkpoint checkpoint, const LoadOptions& options) {
  const auto source = checkpoint.source + ": config.json";
  const auto& family = find_family(
      ConfigReader(checkpoint.config, source).require_string("model_type"));
  auto spec = options.draft_head
                  ? spec_with_draft_head(family, source, checkpoint)
                  : family.make_spec(ConfigReader(checkpoint.config, source),
                                     checkpoint);
  drop_unused(checkpoint, spec);
  const auto adapter = use_adapter(checkpoint, options);
  return std::make_shared<Decoder>(std::move(spec),
                                   std::move(checkpoint),
                                   adapter ? &*adapter : nullptr,
                                   options);
}

}  // namespace mlxlm
