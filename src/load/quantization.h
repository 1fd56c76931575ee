// Which matrices are quantized and how: config.json's map matched with the
// tensors.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include <mlx/array.h>
#include <nlohmann/json.hpp>

#include "load/checkpoint.h"

namespace mlxlm {

// config["quantization"]: one setting for all, and others or none for modules
// by their path.
struct QuantizationMap {
  Quantization all;
  std::map<std::string, std::optional<Quantization>> modules;  // none: false
};

// None if the config has no such object. Throws Error{config} on combinations
// of mode, bits and group size that MLX lacks.
std::optional<QuantizationMap> read_quantization_map(
    const nlohmann::json& config);

// "4-bit affine, groups of 64"
std::string describe(const Quantization& quantization);

// True if MLX has the combination: affine with 2, 3, 4, 5, 6 or 8 bits and
// groups of 32, 64 or 128; mxfp4, mxfp8 and nvfp4 with their own.
bool is_supported(const Quantization& quantization);

// Every module that has .scales beside its .weight, with the map's setting or,
// where that can't be, the one that its shapes tell (see
// infer_quantization). Throws Error{weights} with every module whose weight,
// scales and biases don't fit together.
std::unordered_map<std::string, Quantization> match_quantization(
    const std::optional<QuantizationMap>& map, const Weights& weights);

// The only setting with which `weight` [..., in_dims * bits / 32] and `scales`
// [..., in_dims / group_size] hold `in_dims` columns. The reference uses it for
// every module that the map doesn't name. Throws Error{weights}.
Quantization infer_quantization(const std::string& module,
                                const mx::array& weight,
                                const mx::array& scales,
                                int in_dims);

}  // namespace mlxlm
