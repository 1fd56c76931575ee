// Tensors of safetensors files.
#pragma once

#include <filesystem>

#include "load/checkpoint.h"
#include "load/safetensors_header.h"

namespace mlxlm {

// The tensors of a file whose header was read by read_safetensors_header().
// Nothing is read before it is used; 8-bit floats come as uint8. Throws
// Error{unsupported} on a dtype MLX lacks, naming the tensor.
Weights load_safetensors(const std::filesystem::path& path,
                         const SafetensorsHeader& header);

// Checks, then loads.
Weights load_safetensors(const std::filesystem::path& path);

}  // namespace mlxlm
