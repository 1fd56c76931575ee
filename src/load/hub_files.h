// Names of files in the hub and in its cache.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "load/hub.h"

namespace mlxlm {

// The files of a repository that a model needs, as patterns in which * stands
// for any text, slashes too.
std::span<const char* const> wanted_file_patterns();
bool is_wanted_file(std::string_view name);

// Whether a name from the hub stays below the folder it is put into.
bool is_safe_file_name(std::string_view name);

// 40 hexadecimal digits.
bool is_commit(std::string_view text);

// The repository's folder in the cache.
std::filesystem::path storage_folder(const HubId& id,
                                     const HubOptions& options);

}  // namespace mlxlm
