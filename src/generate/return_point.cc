#include "generate/return_point.h"

#include <algorithm>
#include <utility>

namespace mlxlm {

void ReturnPoint::set(const PromptCache& cache, int count) {
  points_.clear();
  auto is_trimmable = [count](const CachePtr& layer) {
    return layer->is_trimmable_after(count);
  };
  if (std::ranges::all_of(cache, is_trimmable)) {
    return;
  }
  for (const auto& layer : cache) {
    // A checkpoint makes the next update copy; so only where it is needed.
    points_.push_back(
        {layer, is_trimmable(layer) ? nullptr : layer->checkpoint()});
  }
}

int ReturnPoint::take_back(PromptCache& cache, int num_read, int num_kept) {
  const auto points = std::exchange(points_, {});
  if (num_kept >= num_read) {
    return num_kept;
  }
  if (points.empty()) {
    for (const auto& layer : cache) {
      layer->trim(num_read - num_kept);
    }
    return num_kept;
  }
  for (std::size_t i = 0; i < cache.size(); ++i) {
    if (points[i].checkpoint) {
      cache[i] = points[i].layer;
      cache[i]->rollback(*points[i].checkpoint);
    } else {
      cache[i]->trim(num_read);
    }
  }
  return 0;
}

}  // namespace mlxlm
