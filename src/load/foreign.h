// Quantized checkpoints of other tools, turned into MLX's formats on load as
// mlx_lm.utils.load_model and the models' sanitize do.
//
//   awq, gptq            4-bit integers -> affine, exactly
//   compressed-tensors   packed 4-bit integers -> affine, mxfp4 -> mxfp4
//   mxfp4, mxfp8         blocks and scales -> mxfp4, mxfp8
//   fp8                  e4m3 with power-of-two scales of 32x32 -> mxfp8, with
//                        other block or tensor scales -> bfloat16
//   bitnet               ternary -> 2-bit affine, exactly
//   modelopt             NVFP4 in MLX's names
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include <nlohmann/json.hpp>

#include "load/checkpoint.h"

namespace mlxlm {

// Finds the quantization settings wherever exporters leave them (text_config,
// hf_quant_config.json in `folder`), converts the tensors and sets
// config["quantization"] to what they are then. `fp8` names the tensors the
// files hold as F8_E4M3 (loaded as uint8). Throws Error{config, weights,
// unsupported}.
void convert_foreign_weights(nlohmann::json& config,
                             const std::filesystem::path& folder,
                             const std::set<std::string>& fp8,
                             Weights& weights);

}  // namespace mlxlm
