// What a model is made from, whatever file format it came in.
#pragma once

#include <string>
#include <unordered_map>

#include <mlx/array.h>
#include <nlohmann/json.hpp>

#include <mlxlm/model.h>

namespace mlxlm {

using Weights = std::unordered_map<std::string, mx::array>;

// How one matrix is quantized; `mode` as MLX names it.
struct Quantization {
  int group_size = 64;
  int bits = 4;
  std::string mode = "affine";  // affine, mxfp4, mxfp8, nvfp4
  bool operator==(const Quantization&) const = default;
};

// Names as in the reference's layout (after its `sanitize`, where that is a
// matter of the file format; architecture-specific renames are the model's).
struct Checkpoint {
  nlohmann::json config;
  nlohmann::json generation_config;  // null if there is none
  Weights weights;
  // Every quantized module by its path ("model.layers.0.mlp.up_proj"): it has
  // .weight, .scales and, if affine, .biases among the weights.
  std::unordered_map<std::string, Quantization> quantized;
  // Modules whose inputs are rotated (kernels::InputRotation) in blocks of so
  // many; they have .signs among the weights.
  std::unordered_map<std::string, int> rotated;
  std::string source;  // the folder or file, for messages
};

// Folder, .gguf file or hub id.
Checkpoint load_checkpoint(const std::string& name, const LoadOptions& options);

}  // namespace mlxlm
