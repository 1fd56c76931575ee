// A cache's arrays, and arrays that pass from one thread to another.
#pragma once

#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/cache.h>

namespace mlxlm {

// Every array that must be evaluated to bring the cache up to date.
inline std::vector<mx::array> arrays_of(const PromptCache& cache) {
  std::vector<mx::array> arrays;
  for (const CachePtr& layer : cache) {
    if (layer) layer->append_arrays_to(arrays);
  }
  return arrays;
}

// Evaluated to the end: other threads find nothing to wait for, which they
// couldn't, as streams belong to threads.
inline void settle(std::vector<mx::array> arrays) {
  mx::eval(arrays);
  for (const mx::array& array : arrays) {
    array.is_available();
  }
}

inline void settle(const PromptCache& cache) { settle(arrays_of(cache)); }

}  // namespace mlxlm
