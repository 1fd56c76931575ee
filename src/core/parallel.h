// Work on ranges spread over the machine's cores, for loading; the engine's
// own kernels have their pool.
#pragma once

#include <cstddef>
#include <functional>

namespace mlxlm {

// Calls body(begin, end) on parts of [0, count) from several threads, at least
// `min_part` long each, and returns when all are done. The first exception
// that a part throws is thrown here; parts that nobody began then are left.
void parallel_for(
    std::size_t count,
    std::size_t min_part,
    const std::function<void(std::size_t begin, std::size_t end)>& body);

}  // namespace mlxlm
