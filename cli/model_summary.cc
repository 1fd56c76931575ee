#include "cli/model_summary.h"

#include <array>
#include <exception>
#include <string_view>
#include <utility>

#include <mlx/mlx.h>

namespace mlxlm::cli {
namespace {

using nlohmann::json;

struct Packing {
  int group_size = 0;
  int bits = 0;
  std::string mode = "affine";
};

using Parameters = std::map<std::string, mx::array>;

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() &&
         text.substr(text.size() - end.size()) == end;
}

std::string part_of(std::string_view name) {
  auto has = [name](std::string_view word) {
    return name.find(word) != std::string_view::npos;
  };
  if (has("norm")) {
    return "norms";
  }
  if (has("lm_head") || name.starts_with("output.")) {
    return "head";
  }
  if (has("embed") || has("wte") || has("wpe")) {
    return "embedding";
  }
  if (has("experts") || has("switch_mlp")) {
    return "experts";
  }
  if (has("attn") || has("attention")) {
    return "attention";
  }
  if (has("mlp") || has("feed_forward") || has("ffn")) {
    return "mlp";
  }
  return "other";
}

// The packing that config.json gives a module: its own entry or the general
// one.
Packing configured_packing(const json& config, const std::string& module) {
  Packing packing;
  auto found = config.find("quantization");
  if (found == config.end() || !found->is_object()) {
    return packing;
  }
  auto own = found->find(module);
  const json& entry = own != found->end() && own->is_object() ? *own : *found;
  auto number = [&entry](const char* key) {
    auto value = entry.find(key);
    return value != entry.end() && value->is_number_integer()
               ? value->get<int>()
               : 0;
  };
  packing.group_size = number("group_size");
  packing.bits = number("bits");
  auto mode = entry.find("mode");
  if (mode != entry.end() && mode->is_string()) {
    packing.mode = mode->get<std::string>();
  }
  return packing;
}

// The packing that the shapes allow, preferably the configured one, else (GGUF)
// groups of 32: packed
// columns * 32 / bits = scale columns * group size.
std::optional<Packing> packing_of(const mx::array& weight,
                                  const mx::array& scales,
                                  Packing configured) {
  std::int64_t packed_bits = std::int64_t{weight.shape(-1)} * 32;
  std::int64_t groups = scales.shape(-1);
  auto fits = [&](int group_size, int bits) {
    return group_size > 0 && bits > 0 &&
           packed_bits == groups * group_size * bits;
  };
  if (fits(configured.group_size, configured.bits)) {
    return configured;
  }
  for (int group_size : {32, 64, 128, 16}) {
    for (int bits : {4, 8, 5, 6, 3, 2}) {
      if (fits(group_size, bits)) {
        return Packing{group_size, bits, configured.mode};
      }
    }
  }
  return std::nullopt;
}

std::string dtype_name(mx::Dtype dtype) {
  static const std::array<std::pair<mx::Dtype, const char*>, 6> names = {{
      {mx::float32, "float32"},
      {mx::float16, "float16"},
      {mx::bfloat16, "bfloat16"},
      {mx::int32, "int32"},
      {mx::uint32, "uint32"},
      {mx::uint8, "uint8"},
  }};
  for (const auto& [value, name] : names) {
    if (value == dtype) {
      return name;
    }
  }
  return "other";
}

void add(PartSummary& part,
         std::int64_t num_parameters,
         std::uint64_t num_bytes,
         const std::string& format) {
  part.num_parameters += num_parameters;
  part.num_bytes += num_bytes;
  if (num_parameters > 0) {
    part.formats[format] += num_parameters;
  }
}

// Adds one tensor. Scales and biases of a packed weight count as bytes only.
void add_parameter(ModelSummary& summary,
                   const Parameters& all,
                   const std::string& name,
                   const mx::array& value,
                   const json& config) {
  PartSummary& part = summary.parts[part_of(name)];
  auto count = [&](std::int64_t parameters, const std::string& format) {
    add(part, parameters, value.nbytes(), format);
    add(summary.total, parameters, value.nbytes(), format);
  };
  std::string module = name.substr(0, name.rfind('.'));
  auto scales = all.find(module + ".scales");
  if (scales == all.end() || ends_with(name, ".bias")) {
    count(static_cast<std::int64_t>(value.size()), dtype_name(value.dtype()));
    return;
  }
  if (!ends_with(name, ".weight")) {
    count(0, "");
    return;
  }
  auto packing =
      packing_of(value, scales->second, configured_packing(config, module));
  if (!packing) {
    count(static_cast<std::int64_t>(value.size()), "packed");
    return;
  }
  count(static_cast<std::int64_t>(value.size()) * 32 / packing->bits,
        std::to_string(packing->bits) + "-bit " + packing->mode + ", group " +
            std::to_string(packing->group_size));
}

// The caches' size after `tokens` tokens, from the shapes of a pass that is
// described but never computed.
std::optional<std::uint64_t> cache_bytes(Model& model, int tokens) {
  try {
    PromptCache cache = model.make_cache();
    model.forward(mx::zeros({1, tokens}, mx::int32), cache);
    std::uint64_t bytes = 0;
    for (const CachePtr& layer : cache) {
      bytes += layer->nbytes();
    }
    return bytes;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

}  // namespace

ModelSummary summarize(Model& model, int context_tokens) {
  ModelSummary summary;
  Parameters parameters;
  for (Parameter& parameter : model.parameters()) {
    parameters.insert_or_assign(parameter.name, parameter.value);
  }
  for (const auto& [name, value] : parameters) {
    add_parameter(summary, parameters, name, value, model.config());
  }
  for (const CachePtr& layer : model.make_cache()) {
    ++summary.cache_kinds[std::string(layer->kind())];
  }
  summary.memory = {.context_tokens = context_tokens,
                    .weight_bytes = summary.total.num_bytes,
                    .cache_bytes = cache_bytes(model, context_tokens)};
  return summary;
}

std::vector<std::string> template_features(const Tokenizer& tokenizer) {
  std::vector<std::string> features;
  if (!tokenizer.has_chat_template()) {
    return features;
  }
  const std::string& source = tokenizer.chat_template();
  auto mentions = [&source](std::string_view word) {
    return source.find(word) != std::string::npos;
  };
  if (mentions("system")) {
    features.emplace_back("system");
  }
  if (mentions("tools") || tokenizer.has_tool_calling()) {
    features.emplace_back("tools");
  }
  if (mentions("enable_thinking") || tokenizer.has_thinking()) {
    features.emplace_back("thinking");
  }
  if (mentions("add_generation_prompt")) {
    features.emplace_back("generation prompt");
  }
  return features;
}

}  // namespace mlxlm::cli
