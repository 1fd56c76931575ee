// The reference's tree_flatten and tree_unflatten for cache states: "1.0.2" is
// item 2 of item 0 of item 1.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <mlxlm/cache.h>

namespace mlxlm {

// The leaves with their names, in order. `states`: one per layer.
std::vector<std::pair<std::string, CacheState>> flatten_states(
    const std::vector<CacheState>& states);

// The reverse. The names come from a file: throws Error{format} unless they
// form a tree without gaps of at most kMaxStateDepth levels.
std::vector<CacheState> unflatten_states(
    std::vector<std::pair<std::string, CacheState>> leaves);

inline constexpr std::size_t kMaxStateDepth = 8;

}  // namespace mlxlm
