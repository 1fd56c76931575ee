// Files of tests/data.
#pragma once

#include <filesystem>
#include <string_view>

namespace mlxlm {

std::filesystem::path test_data(std::string_view name);

}  // namespace mlxlm
