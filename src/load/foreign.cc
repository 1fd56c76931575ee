#include "load/foreign.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "core/file.h"
#include "core/json.h"
#include "load/config.h"
#include "load/foreign_formats.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// config["quantization_config"], from where the exporter left it.
void find_settings(json& config, const std::filesystem::path& folder) {
  constexpr const char* kKey = "quantization_config";
  auto has_settings = [&](const json& object) {
    auto it = object.is_object() ? object.find(kKey) : object.end();
    return object.is_object() && it != object.end() && !it->is_null();
  };
  if (!has_settings(config) && config.contains("text_config") &&
      has_settings(config["text_config"])) {
    config[kKey] = config["text_config"][kKey];
  }
  std::filesystem::path nvidia = folder / "hf_quant_config.json";
  if (!has_settings(config) && file_exists(nvidia)) {
    config[kKey] = read_json_file(nvidia, {}, ErrorKind::config);
  }
}

void set_quantization(json& config, const Quantization& q) {
  config["quantization"] = {
      {"group_size", q.group_size}, {"bits", q.bits}, {"mode", q.mode}};
  config["quantization_config"] = config["quantization"];
}

bool has_name_with(const Weights& weights, std::string_view suffix) {
  return std::any_of(weights.begin(), weights.end(), [&](const auto& entry) {
    return entry.first.ends_with(suffix);
  });
}

void erase_names_with(Weights& weights, std::string_view suffix) {
  std::erase_if(weights, [&](const auto& entry) {
    return entry.first.ends_with(suffix);
  });
}

bool is_mxfp8(const ConfigReader& settings) {
  return settings.get_string("scale_fmt", "") == "ue8m0" &&
         settings.find_ints("weight_block_size") == std::vector<int>{32, 32};
}

Quantization read_modelopt(const ConfigReader& outer, const Weights& weights) {
  ConfigReader settings = outer.find_object("quantization").value_or(outer);
  if (settings.require_string("quant_algo") != "NVFP4") {
    settings.fail("quant_algo", "NVFP4");
  }
  if (has_name_with(weights, ".weight_scale_2")) {
    throw Error(ErrorKind::unsupported,
                "NVFP4 weights with a scale for the whole tensor "
                "(weight_scale_2) aren't supported; convert the model with "
                "mlx_lm.convert");
  }
  return {settings.get_int("group_size", 16, 1), 4, "nvfp4"};
}

// By the method's name; none if the weights are plain afterwards.
std::optional<Quantization> convert_by_method(const ConfigReader& settings,
                                              Weights& weights,
                                              Faults& faults) {
  std::string method = settings.require_string("quant_method");
  if (method == "awq" || method == "gptq") {
    return foreign::convert_awq_gptq(settings, weights, faults);
  }
  if (method == "mxfp4") {
    foreign::convert_mxfp4_blocks(weights, faults);
    return Quantization{32, 4, "mxfp4"};
  }
  if (method == "mxfp8" || (method == "fp8" && is_mxfp8(settings))) {
    foreign::convert_mxfp8(weights, faults);
    return Quantization{32, 8, "mxfp8"};
  }
  if (method == "fp8") {
    return std::nullopt;
  }
  if (method == "compressed-tensors") {
    return foreign::convert_compressed_tensors(settings, weights, faults);
  }
  if (method == "modelopt") {
    return read_modelopt(settings, weights);
  }
  if (method == "bitnet") {
    return foreign::convert_bitnet(settings, weights, faults);
  }
  throw Error(ErrorKind::unsupported,
              "config.json: quantization_config.quant_method \"" + method +
                  "\" isn't supported (awq, gptq, fp8, mxfp4, mxfp8, "
                  "compressed-tensors, modelopt and bitnet are); take a model "
                  "in another format");
}

int fp8_block(const json& config) {
  auto settings = ConfigReader(config).find_object("quantization_config");
  auto size =
      settings ? settings->find_ints("weight_block_size", 1) : std::nullopt;
  if (!size) {
    return 128;
  }
  if (size->size() != 2 || (*size)[0] != (*size)[1] || (*size)[0] > 65536) {
    settings->fail("weight_block_size", "two equal sizes");
  }
  return (*size)[0];
}

// Without MLX's own map: what the exporter's settings ask for.
void convert_by_settings(json& config, Weights& weights, Faults& faults) {
  auto settings = ConfigReader(config).find_object("quantization_config");
  if (!settings || settings->raw().empty()) {
    return;
  }
  // MLX's map under the other name.
  if (!settings->has("quant_method") && settings->has("bits") &&
      settings->has("group_size")) {
    config["quantization"] = settings->raw();
  } else if (auto q = convert_by_method(*settings, weights, faults)) {
    set_quantization(config, *q);
  }
}

}  // namespace

void convert_foreign_weights(nlohmann::json& config,
                             const std::filesystem::path& folder,
                             const std::set<std::string>& fp8,
                             Weights& weights) {
  find_settings(config, folder);
  Faults faults;
  bool has_settings = ConfigReader(config).has("quantization_config");
  if (!ConfigReader(config).has("quantization")) {
    convert_by_settings(config, weights, faults);
  }
  foreign::dequantize_fp8(fp8_block(config), weights, faults);
  if (has_settings) {
    // Scales of activations, which stay in floating point here.
    erase_names_with(weights, "activation_scale");
    erase_names_with(weights, ".input_scale");
  }
  constexpr std::string_view kWeight = ".weight";
  for (const std::string& name : fp8) {
    auto it = weights.find(name);
    bool is_scales =
        name.ends_with(".scales") || name.ends_with("_weight_scale");
    // DeepSeek-V4's, which its family takes.
    if (name.ends_with(kWeight) &&
        weights.contains(name.substr(0, name.size() - kWeight.size()) +
                         ".scale")) {
      continue;
    }
    if (it != weights.end() && it->second.dtype() == mx::uint8 && !is_scales) {
      faults.add(name, "holds 8-bit floats without a scale this format has");
    }
  }
  faults.throw_if_any("the quantized weights can't be converted");
}

}  // namespace mlxlm
