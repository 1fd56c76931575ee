// How sure a choice of tokens is.
#pragma once

#include <mlx/mlx.h>

namespace mlxlm {

// Of log-probabilities [V]: how far the best token is ahead of the next.
inline float margin_of(const mlx::core::array& logprobs) {
  namespace mx = mlx::core;
  auto two = mx::topk(logprobs, 2, -1);
  return mx::subtract(mx::max(two), mx::min(two)).item<float>();
}

}  // namespace mlxlm
