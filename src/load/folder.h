// Model folders: config.json and model*.safetensors.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "load/checkpoint.h"

namespace mlxlm {

// Everything in a folder, converted to MLX's formats. Weights are read when
// first used. Throws Error{file, config, format, weights, unsupported,
// memory}.
Checkpoint load_folder_checkpoint(const std::filesystem::path& folder,
                                  const LoadOptions& options);

// config.json with the options' overrides; refuses what can't be loaded
// (custom code, quantized activations).
Checkpoint load_folder_config(const std::filesystem::path& folder,
                              const LoadOptions& options);

// The files that hold the weights, sorted: model*.safetensors and those the
// index names. Throws Error{file} naming what is missing; none without
// `required`.
std::vector<std::filesystem::path> find_weight_files(
    const std::filesystem::path& folder, bool required = true);

}  // namespace mlxlm
