// One input of the cache file loader's fuzzing.
#pragma once

#include <filesystem>

namespace mlxlm {

// Loads the file; what is accepted reads tokens, is trimmed, rolled back,
// forked, quantized, saved and loaded again, and a model generates from it.
// Only Error may come out, and is swallowed; returns whether the file was
// accepted.
bool run_cache_file_case(const std::filesystem::path& path);

}  // namespace mlxlm
