// One rank's part of a layer: q, k, v, gate and up have some of the outputs, o
// and down some of the inputs, so that the sum of all ranks' answers is the
// layer's.
// Method: mlx/nn/layers/distributed.py (all-to-sharded, sharded-to-all).
#pragma once

#include <string>

#include "kernels/seam.h"
#include "nn/attention.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// Part `index` of `count` equal ones.
struct Share {
  int index = 0;
  int count = 1;
};

// `number` / count. Throws Error{unsupported} if that isn't a multiple of
// `unit`: "5 key heads can't be split over 2 ranks".
int share_of(int number, int unit, const std::string& what, const Share& share);

// Along an axis counted from the last (-1), in memory of its own.
mx::array part_of(const mx::array& a, int axis, const Share& share);

// Of the outputs, which must be a multiple of count.
kernels::Linear part_of_outputs(const kernels::Linear& linear,
                                const Share& share);
// Of the inputs, in whole groups where the weights are quantized. The bias is
// part 0's. Throws Error{unsupported}.
kernels::Linear part_of_inputs(const kernels::Linear& linear,
                               const std::string& what,
                               const Share& share);

// x, computed after `first`: of sums that don't need each other all ranks must
// begin the same one.
mx::array after(const mx::array& x, const mx::array& first);

// residual + post_norm(the sum of all ranks' y) * scale.
mx::array sum_residual(const mx::array& y, const Residual& residual);

// The same of x W^T, or without a sum where the layer isn't `partial`.
mx::array linear_residual(const mx::array& x,
                          const kernels::Linear& linear,
                          const Residual& residual,
                          bool partial);

}  // namespace mlxlm::nn
