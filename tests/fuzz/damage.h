// Damage to cache files that leaves more to test than random bytes would.
#pragma once

#include <cstdint>
#include <string>

namespace mlxlm {

// A copy of the file with some of its bytes, numbers or its end changed; the
// same for the same seed. The header's length stays right most of the time.
std::string damaged(const std::string& file, std::uint32_t seed);

}  // namespace mlxlm
