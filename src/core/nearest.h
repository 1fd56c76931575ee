// "Did you mean": the closest of a list of names.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace mlxlm {

// Number of single-character insertions, removals and replacements between two
// strings (Levenshtein).
std::size_t edit_distance(std::string_view a, std::string_view b);

// The name closest to `wanted`, if it is closer than half its length.
std::optional<std::string> nearest_name(std::string_view wanted,
                                        std::span<const std::string> names);

}  // namespace mlxlm
