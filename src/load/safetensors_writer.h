// Writes safetensors files so that they can be mapped: the data begins at a
// page, tensors that fill whole pages come first, and every tensor begins at a
// multiple of its number's size.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <mlx/array.h>

namespace mlxlm {

namespace mx = mlx::core;

// Evaluates the tensors, one after the other. Throws Error{file} with the
// reason (a full disk) and Error{unsupported} for a dtype the format lacks.
// What is at `path` is overwritten: to be used within write_file_atomically().
void write_safetensors(const std::filesystem::path& path,
                       std::vector<std::pair<std::string, mx::array>> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace mlxlm
