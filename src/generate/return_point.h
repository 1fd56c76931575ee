// The way back for caches that read what may not stand.
#pragma once

#include <memory>
#include <vector>

#include <mlxlm/cache.h>

namespace mlxlm {

// Layers are trimmed where they can be; others (rotating past their size,
// recurrent) go back to a checkpoint, all of what was read since is gone then.
class ReturnPoint {
 public:
  // Here; `count` tokens at most are read before take_back().
  void set(const PromptCache& cache, int count);

  // Takes back all but the first `num_kept` of the `num_read` tokens since
  // set(). Returns how many of those are still held: all or none.
  int take_back(PromptCache& cache, int num_read, int num_kept);

 private:
  // One per layer with the layer, which quantization may replace meanwhile;
  // null where trimming does. Empty if it does everywhere.
  struct Point {
    CachePtr layer;
    std::unique_ptr<CacheCheckpoint> checkpoint;
  };
  std::vector<Point> points_;
};

}  // namespace mlxlm
