// Environment variables and the user's folders that they name.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

namespace mlxlm {

// A variable's value; empty if it isn't set.
using Environment = std::function<std::string(const char* name)>;
std::string process_environment(const char* name);

// `path` with $HOME in place of a leading "~".
std::filesystem::path expand_home(const std::string& path,
                                  const Environment& environment);

// $XDG_CACHE_HOME, else ~/.cache.
std::filesystem::path user_cache_folder(const Environment& environment);

}  // namespace mlxlm
