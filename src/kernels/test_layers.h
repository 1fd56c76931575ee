// Random layers for the tests of kernels.
#pragma once

#include <string>

#include <mlx/mlx.h>

#include "kernels/seam.h"

namespace mlxlm::kernels::test_layers {

inline mx::array random(mx::Shape shape, float scale = 1.0f) {
  return mx::multiply(mx::random::normal(shape), mx::array(scale));
}

inline Linear dense(int rows, int columns, mx::Dtype dtype, bool bias = false) {
  Linear linear{mx::astype(random({rows, columns}, 0.3f), dtype)};
  if (bias) linear.bias = random({rows});
  return linear;
}

inline Linear quantize(const mx::array& weight,
                       int bits,
                       int group_size,
                       const std::string& mode = "affine") {
  auto parts = mx::quantize(weight, group_size, bits, mode);
  Linear linear{parts[0]};
  linear.scales = parts[1];
  if (parts.size() > 2) linear.zeros = parts[2];
  linear.bits = bits;
  linear.group_size = group_size;
  linear.mode = mode;
  return linear;
}

inline Linear quantized(int rows,
                        int columns,
                        int bits,
                        int group_size,
                        mx::Dtype dtype = mx::float32,
                        const std::string& mode = "affine") {
  return quantize(
      mx::astype(random({rows, columns}, 0.3f), dtype), bits, group_size, mode);
}

}  // namespace mlxlm::kernels::test_layers
