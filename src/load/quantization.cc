#include "load/quantization.h"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "load/config.h"
#include "load/faults.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kAffineBits[] = {2, 3, 4, 5, 6, 8};
constexpr int kAffineGroups[] = {32, 64, 128};

struct Mode {
  const char* name;
  int group_size;  // the default; the only one unless affine
  int bits;
};
constexpr Mode kModes[] = {
    {"affine", 64, 4}, {"mxfp4", 32, 4}, {"mxfp8", 32, 8}, {"nvfp4", 16, 4}};

Quantization read_setting(const ConfigReader& reader) {
  Quantization out;
  out.mode = reader.get_string("mode", "affine");
  auto mode = std::find_if(std::begin(kModes), std::end(kModes), [&](auto& m) {
    return m.name == out.mode;
  });
  if (mode == std::end(kModes)) {
    reader.fail("mode", "affine, mxfp4, mxfp8 or nvfp4");
  }
  out.group_size = reader.get_int("group_size", mode->group_size, 1);
  out.bits = reader.get_int("bits", mode->bits, 1);
  if (is_supported(out)) {
    return out;
  }
  if (out.mode != "affine") {
    reader.fail(
        out.bits != mode->bits ? "bits" : "group_size",
        std::to_string(out.bits != mode->bits ? mode->bits : mode->group_size) +
            " with mode " + out.mode);
  }
  bool bits_fit =
      std::find(std::begin(kAffineBits), std::end(kAffineBits), out.bits) !=
      std::end(kAffineBits);
  if (!bits_fit) {
    reader.fail("bits", "2, 3, 4, 5, 6 or 8");
  }
  reader.fail("group_size", "32, 64 or 128");
}

// weight's columns times 32 = bits * in_dims, scales' columns * group_size =
// in_dims.
bool fits(const Quantization& q, std::int64_t words, std::int64_t groups) {
  return words * 32 == groups * q.group_size * q.bits;
}

bool is_float(const mx::array& array) {
  return mx::issubdtype(array.dtype(), mx::floating);
}

// The setting of a module that the map doesn't name, without knowing the
// number of its columns: the general one if the shapes allow it, else the one
// that shares most with it.
std::optional<Quantization> guess_setting(const Quantization& all,
                                          const mx::array& weight,
                                          const mx::array& scales) {
  if (weight.ndim() == 0 || scales.ndim() == 0) {
    return std::nullopt;
  }
  bool affine = is_float(scales);
  if (affine == (all.mode == "affine") &&
      fits(all, weight.shape(-1), scales.shape(-1))) {
    return all;
  }
  std::optional<Quantization> best;
  int best_score = -1;
  auto consider = [&](const Quantization& q) {
    int score = 2 * (q.group_size == all.group_size) + (q.bits == all.bits);
    if (fits(q, weight.shape(-1), scales.shape(-1)) && score > best_score) {
      best = q;
      best_score = score;
    }
  };
  if (!affine) {
    for (const Mode& mode : kModes) {
      if (mode.name != std::string_view("affine")) {
        consider({mode.group_size, mode.bits, mode.name});
      }
    }
    return best;
  }
  for (int group_size : kAffineGroups) {
    for (int bits : kAffineBits) {
      consider({group_size, bits, "affine"});
    }
  }
  return best;
}

const mx::array* find(const Weights& weights, const std::string& name) {
  auto it = weights.find(name);
  return it == weights.end() ? nullptr : &it->second;
}

// What is wrong with the tensors of one quantized module; empty if nothing.
std::string fault_of(const std::string& module,
                     const Quantization& q,
                     const Weights& weights) {
  const mx::array& weight = weights.at(module + ".weight");
  const mx::array& scales = weights.at(module + ".scales");
  const mx::array* biases = find(weights, module + ".biases");
  bool affine = q.mode == "affine";
  if (weight.dtype() != mx::uint32) {
    return "has scales, but its weight is " + to_text(weight.dtype()) +
           " instead of packed uint32";
  }
  if (affine ? !is_float(scales) : scales.dtype() != mx::uint8) {
    return "is " + describe(q) + ", but its scales are " +
           to_text(scales.dtype());
  }
  mx::Shape rows = weight.shape();
  mx::Shape scale_rows = scales.shape();
  if (rows.size() < 2 || rows.size() != scale_rows.size()) {
    return "weight " + to_text(rows) + " and scales " + to_text(scale_rows) +
           " must have the same number of dimensions, at least 2";
  }
  std::int64_t words = rows.back();
  std::int64_t groups = scale_rows.back();
  rows.pop_back();
  scale_rows.pop_back();
  if (rows != scale_rows || !fits(q, words, groups)) {
    return "weight " + to_text(weight.shape()) + " and scales " +
           to_text(scales.shape()) + " don't fit " + describe(q);
  }
  if (const mx::array* scale = find(weights, module + ".global_scale")) {
    // One per expert of a stack.
    if (q.mode != "nvfp4" || weight.ndim() != 3 ||
        scale->shape() != mx::Shape{weight.shape(0)}) {
      return "has a global_scale " + to_text(*scale) +
             ", which only stacks of nvfp4 experts may have, one per expert";
    }
  }
  if (affine != (biases != nullptr)) {
    return affine ? "is affine, but has no biases"
                  : "is " + q.mode + ", but has biases";
  }
  if (affine && (biases->shape() != scales.shape() || !is_float(*biases))) {
    return "biases " + to_text(*biases) + " must be as its scales " +
           to_text(scales);
  }
  return "";
}

constexpr std::string_view kScales = ".scales";

// The modules that have both .scales and .weight, sorted.
std::vector<std::string> quantized_modules(const Weights& weights) {
  std::vector<std::string> modules;
  for (const auto& [name, value] : weights) {
    if (name.ends_with(kScales)) {
      std::string module = name.substr(0, name.size() - kScales.size());
      if (weights.contains(module + ".weight")) {
        modules.push_back(std::move(module));
      }
    }
  }
  std::sort(modules.begin(), modules.end());
  return modules;
}

}  // namespace

bool is_supported(const Quantization& q) {
  if (q.mode != "affine") {
    return std::any_of(std::begin(kModes), std::end(kModes), [&](auto& mode) {
      return mode.name == q.mode && mode.bits == q.bits &&
             mode.group_size == q.group_size;
    });
  }
  auto holds = [](const auto& list, int value) {
    return std::find(std::begin(list), std::end(list), value) != std::end(list);
  };
  return holds(kAffineBits, q.bits) && holds(kAffineGroups, q.group_size);
}

std::string describe(const Quantization& q) {
  return std::to_string(q.bits) + "-bit " + q.mode + ", groups of " +
         std::to_string(q.group_size);
}

std::optional<QuantizationMap> read_quantization_map(
    const nlohmann::json& config) {
  auto it = config.find("quantization");
  if (it == config.end() || it->is_null()) {
    return std::nullopt;
  }
  ConfigReader reader = ConfigReader(config).require_object("quantization");
  QuantizationMap map;
  map.all = read_setting(reader);
  for (const auto& [key, value] : it->items()) {
    if (value.is_boolean()) {
      map.modules[key] = value.get<bool>()
                             ? std::optional<Quantization>(map.all)
                             : std::nullopt;
    } else if (value.is_object()) {
      map.modules[key] = read_setting(reader.require_object(key));
    }
  }
  return map;
}

std::unordered_map<std::string, Quantization> match_quantization(
    const std::optional<QuantizationMap>& map, const Weights& weights) {
  std::unordered_map<std::string, Quantization> out;
  std::vector<std::string> modules = quantized_modules(weights);
  if (modules.empty()) {
    return out;
  }
  if (!map) {
    throw Error(ErrorKind::config,
                "the weights are quantized (" + modules.front() +
                    " and others have .scales), but config.json has no "
                    "\"quantization\" with group_size and bits");
  }
  Faults faults;
  for (const std::string& module : modules) {
    auto named = map->modules.find(module);
    if (named != map->modules.end() && !named->second) {
      continue;
    }
    std::optional<Quantization> q =
        named != map->modules.end()
            ? named->second
            : guess_setting(map->all,
                            weights.at(module + ".weight"),
                            weights.at(module + ".scales"));
    Quantization setting = q.value_or(map->all);
    std::string fault = fault_of(module, setting, weights);
    if (fault.empty()) {
      out.emplace(module, setting);
    } else {
      faults.add(module, fault);
    }
  }
  faults.throw_if_any("the quantized weights don't fit config.json");
  return out;
}

Quantization fit_to_columns(const Quantization& setting,
                            int num_groups,
                            int num_columns) {
  if (setting.mode != "affine" || num_groups <= 0 ||
      num_columns % num_groups != 0 || num_columns < num_groups) {
    return setting;
  }
  int group_size = num_columns / num_groups;
  int group_bits = setting.group_size * setting.bits;
  Quantization fitted{group_size, group_bits / group_size, "affine"};
  return is_supported(fitted) && group_size * fitted.bits == group_bits
             ? fitted
             : setting;
}

}  // namespace mlxlm
