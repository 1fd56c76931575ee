// Safetensors files with dtypes that MLX doesn't write.
#pragma once

#include <filesystem>
#include <map>
#include <string>

namespace mlxlm {

// Says in the header that these tensors, written as bytes, are of a dtype:
// {{"a.weight", "F8_E4M3"}}.
void set_dtypes(const std::filesystem::path& file,
                const std::map<std::string, std::string>& dtypes);

}  // namespace mlxlm
