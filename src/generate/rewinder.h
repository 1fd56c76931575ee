// Takes back the newest tokens of a prompt cache, whatever its kinds.
#pragma once

#include <memory>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

// Around one round of speculation: begin(), up to `max_tokens` tokens are
// read, rewind(). Layers that can't be trimmed afterwards (rotating past their
// size, recurrent) go back to a checkpoint and read the kept tokens again.
class Rewinder {
 public:
  // Throws Error{unsupported} for a cache that can't be rewound exactly.
  Rewinder(ModelPtr model, PromptCache& cache);

  void begin(int max_tokens);

  // Of the tokens read since begin() keeps the first `num_kept`.
  void rewind(const std::vector<int>& read, int num_kept);

 private:
  ModelPtr model_;
  PromptCache& cache_;
  // One per layer with the layer, which quantization may replace meanwhile;
  // null where trimming does. Empty if it does everywhere.
  struct Point {
    CachePtr layer;
    std::unique_ptr<CacheCheckpoint> checkpoint;
  };
  std::vector<Point> points_;
};

}  // namespace mlxlm
