// The closed list of cache kinds, by the reference's class names.
#pragma once

#include <string_view>

#include <mlxlm/cache.h>

namespace mlxlm {

// Throws Error{format} for a name outside the list.
void check_cache_class(std::string_view class_name);

// A cache of the named class with this content. Throws Error{format} for a
// name outside the list and for content that doesn't fit.
CachePtr cache_from_state(std::string_view class_name, const CacheState& state);

}  // namespace mlxlm
