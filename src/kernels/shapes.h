// Shapes and parts of arrays that several implementations need.
#pragma once

#include <cstddef>
#include <utility>

#include <mlx/mlx.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

// x [..., D]: how many rows of D numbers it has.
inline std::size_t num_rows_of(const mx::array& x) {
  return x.size() / x.shape(-1);
}

// The shape of x with another last axis.
inline mx::Shape shape_with_last(const mx::array& x, int last) {
  mx::Shape shape = x.shape();
  shape.back() = last;
  return shape;
}

// Keys or values [B, H, T, D]: [:, :, from:to].
inline mx::array tokens_of(const mx::array& array, int from, int to) {
  mx::Shape start(4, 0);
  mx::Shape stop = array.shape();
  start[2] = from;
  stop[2] = to;
  return mx::slice(array, std::move(start), std::move(stop));
}

// Likewise with [:, :, at:at + L] = tokens [B, H, L, D].
inline mx::array with_tokens(const mx::array& array,
                             const mx::array& tokens,
                             int at) {
  mx::Shape start(4, 0);
  mx::Shape stop = array.shape();
  start[2] = at;
  stop[2] = at + tokens.shape(2);
  return mx::slice_update(array, tokens, std::move(start), std::move(stop));
}

}  // namespace mlxlm::kernels
