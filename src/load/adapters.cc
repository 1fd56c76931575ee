#include "load/adapters.h"

#include <filesystem>
#include <limits>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "core/file.h"
#include "core/json.h"
#include "core/nearest.h"
#include "load/config.h"
#include "load/faults.h"
#include "load/safetensors.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kConfigName = "adapter_config.json";
constexpr const char* kWeightsName = "adapters.safetensors";

[[noreturn]] void refuse_folder(const fs::path& folder) {
  if (!file_exists(folder)) {
    throw Error(ErrorKind::file,
                "there is no adapter folder " + folder.string());
  }
  std::string advice;
  if (file_exists(folder / "adapter_model.safetensors")) {
    advice =
        "; it is an adapter of the PEFT library, which uses another format";
  }
  const char* missing =
      file_exists(folder / kConfigName) ? kWeightsName : kConfigName;
  throw Error(
      ErrorKind::file,
      "the adapter folder " + folder.string() + " has no " + missing + advice);
}

AdapterKind read_kind(const ConfigReader& reader) {
  std::string kind = reader.get_string("fine_tune_type", "lora");
  if (kind == "lora") {
    return AdapterKind::lora;
  }
  if (kind == "dora") {
    return AdapterKind::dora;
  }
  if (kind != "full") {
    reader.fail("fine_tune_type", "lora, dora or full");
  }
  return AdapterKind::full;
}

void read_parameters(const ConfigReader& reader, Adapter& out) {
  out.num_layers =
      reader.require_int("num_layers", std::numeric_limits<int>::min());
  ConfigReader parameters = reader.require_object("lora_parameters");
  out.rank = parameters.require_int("rank");
  if (!parameters.has("scale") && parameters.has("alpha")) {
    parameters.fail("scale",
                    "a number (\"alpha\" isn't it: scale is alpha / rank in "
                    "other tools' terms)");
  }
  out.scale = static_cast<float>(parameters.require_float("scale"));
  if (auto keys = parameters.find_strings("keys")) {
    out.keys.emplace(keys->begin(), keys->end());
  }
}

// Splits "path.leaf" into modules' parts.
void take_parts(Weights tensors, Adapter& out, Faults& faults) {
  for (auto& [name, value] : tensors) {
    std::size_t dot = name.rfind('.');
    std::string leaf = dot == std::string::npos ? name : name.substr(dot + 1);
    std::string path = dot == std::string::npos ? "" : name.substr(0, dot);
    bool is_magnitude = leaf == "m" && out.kind == AdapterKind::dora;
    if (path.empty() ||
        (leaf != "lora_a" && leaf != "lora_b" && !is_magnitude)) {
      faults.add(name,
                 "is no adapter tensor (lora_a, lora_b" +
                     std::string(out.kind == AdapterKind::dora ? ", m)" : ")"));
      continue;
    }
    AdapterModule& module = out.modules[path];
    (leaf == "lora_a"   ? module.a
     : leaf == "lora_b" ? module.b
                        : module.magnitude) = value;
  }
  for (const auto& [path, module] : out.modules) {
    if (!module.a || !module.b) {
      faults.add(path,
                 module.a ? "has lora_a, but no lora_b" : "has no lora_a");
    } else if (out.kind == AdapterKind::dora && !module.magnitude) {
      faults.add(path, "has no magnitude m, which DoRA needs");
    }
  }
}

// "model.layers.12.mlp.up_proj" -> 12 and "mlp.up_proj".
std::optional<std::pair<int, std::string>> place_in_layers(
    const std::string& path) {
  constexpr std::string_view kLayers = "layers.";
  for (std::size_t at = path.find(kLayers); at != std::string::npos;
       at = path.find(kLayers, at + 1)) {
    if (at > 0 && path[at - 1] != '.') {
      continue;
    }
    std::size_t digits = at + kLayers.size();
    std::size_t end = path.find('.', digits);
    bool is_number = end != std::string::npos && end > digits &&
                     end - digits < 9 &&
                     path.find_first_not_of("0123456789", digits) == end;
    if (is_number) {
      return std::pair(std::stoi(path.substr(digits, end - digits)),
                       path.substr(end + 1));
    }
  }
  return std::nullopt;
}

// True if the adapter's configuration adapts the module at `path`.
bool adapts(const Adapter& adapter, const std::string& path, int num_layers) {
  if (adapter.keys && adapter.keys->contains(path)) {
    return true;
  }
  auto place = place_in_layers(path);
  if (!place) {
    return false;
  }
  bool in_reach = adapter.num_layers <= 0 ||
                  place->first >= num_layers - adapter.num_layers;
  return in_reach && (!adapter.keys || adapter.keys->contains(place->second));
}

void check_shape(const std::string& name,
                 const std::optional<mx::array>& tensor,
                 const mx::Shape& expected,
                 Faults& faults) {
  if (tensor && tensor->shape() != expected) {
    faults.add(name,
               "is " + to_text(tensor->shape()) + ", but the model needs " +
                   to_text(expected));
  }
}

void check_module(const std::string& path,
                  const AdapterModule& module,
                  const AdapterTarget& target,
                  int rank,
                  Faults& faults) {
  const auto shapes = adapter_shapes(target, rank);
  check_shape(path + ".lora_a", module.a, shapes.a, faults);
  check_shape(path + ".lora_b", module.b, shapes.b, faults);
  if (target.kind != AdapterTarget::Kind::experts) {
    check_shape(path + ".m", module.magnitude, shapes.magnitude, faults);
  } else if (module.magnitude) {
    faults.add(path, "is a stack of experts, which DoRA doesn't support");
  }
}

std::string headline(const Adapter& adapter) {
  return "the adapter in " + adapter.source + " doesn't fit the model";
}

}  // namespace

Adapter load_adapter(const std::string& folder_name) {
  fs::path folder = folder_name;
  if (!file_exists(folder / kConfigName) ||
      !file_exists(folder / kWeightsName)) {
    refuse_folder(folder);
  }
  json config = read_json_file(
      folder / kConfigName, {.non_finite = true}, ErrorKind::config);
  ConfigReader reader(config, (folder / kConfigName).string());
  Adapter out;
  out.source = folder.string();
  out.kind = read_kind(reader);
  Weights tensors = load_safetensors(folder / kWeightsName);
  if (out.kind == AdapterKind::full) {
    out.tensors = std::move(tensors);
    return out;
  }
  read_parameters(reader, out);
  Faults faults;
  take_parts(std::move(tensors), out, faults);
  faults.throw_if_any("the adapter in " + out.source + " is incomplete");
  return out;
}

AdapterShapes adapter_shapes(const AdapterTarget& target, int rank) {
  const int rows = target.rows;
  const int columns = target.columns;
  switch (target.kind) {
    case AdapterTarget::Kind::embedding:
      return {{rows, rank}, {rank, columns}, {rows}};
    case AdapterTarget::Kind::experts:
      return {{target.experts, rank, columns},
              {target.experts, rows, rank},
              {rows}};
    case AdapterTarget::Kind::linear:
      break;
  }
  return {{columns, rank}, {rank, rows}, {rows}};
}

void check_adapter(const Adapter& adapter,
                   const std::map<std::string, AdapterTarget>& targets,
                   int num_layers) {
  Faults faults;
  std::vector<std::string> names;
  for (const auto& [name, target] : targets) {
    names.push_back(name);
  }
  for (const auto& [path, module] : adapter.modules) {
    auto target = targets.find(path);
    if (target == targets.end()) {
      auto nearest = nearest_name(path, names);
      faults.add(path,
                 "is no layer of the model" +
                     (nearest ? " (nearest: " + *nearest + ")" : ""));
    } else if (!adapts(adapter, path, num_layers)) {
      faults.add(path,
                 "isn't among the keys and the last " +
                     std::to_string(adapter.num_layers) + " layers that " +
                     kConfigName + " names");
    } else {
      check_module(path, module, target->second, adapter.rank, faults);
    }
  }
  faults.throw_if_any(headline(adapter));
}

void check_full_adapter(const Adapter& adapter, const Weights& parameters) {
  Faults faults;
  for (const auto& [name, value] : adapter.tensors) {
    auto parameter = parameters.find(name);
    if (parameter == parameters.end()) {
      faults.add(name, "is no parameter of the model");
    } else if (parameter->second.shape() != value.shape()) {
      faults.add(name,
                 "is " + to_text(value.shape()) + ", but the model needs " +
                     to_text(parameter->second.shape()));
    }
  }
  faults.throw_if_any(headline(adapter));
}

}  // namespace mlxlm
