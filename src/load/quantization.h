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
// fit_to_columns). Throws Error{weights} with every module whose weight,
// scales and biases don't fit together.
std::unordered_map<std::string, Quantization> match_quantization(
    const std::optional<QuantizationMap>& map, const Weights& weights);

// match_quantization() can't tell groups of 32 with 6 bits from groups of 64
// with 3: the same setting for a matrix of `num_columns` that has `num_groups`
// scales a row. As the reference infers it for modules the map doesn't name.
Quantization fit_to_columns(const Quantization& setting,
                            int num_groups,
                            int num_columns);

}  // namespace mlxlm
