// Queries grow with the position, so that attention stays sharp in long
// contexts: times 1 + beta * log(1 + floor((position + shift) / length)).
// Method: mlx_lm/models/{llama4,mistral4,ministral3}.py.
#pragma once

#include <mlx/mlx.h>

namespace mlxlm::nn {

namespace mx = mlx::core;

struct QueryScale {
  float beta = 0.0f;  // 0: off
  int length = 1;
  int shift = 0;

  bool depends_on_position() const { return beta != 0.0f; }

  // q [B, H, L, Dh], its first token at position `offset`.
  mx::array operator()(const mx::array& q, int offset) const {
    if (!depends_on_position()) return q;
    const int first = offset + shift;
    auto positions = mx::arange(first, first + q.shape(2), mx::float32);
    auto lengths =
        mx::floor(mx::divide(positions, mx::array(static_cast<float>(length))));
    auto factors = mx::add(mx::multiply(mx::log1p(lengths), mx::array(beta)),
                           mx::array(1.0f));
    return mx::astype(mx::multiply(q, mx::expand_dims(factors, -1)), q.dtype());
  }
};

}  // namespace mlxlm::nn
