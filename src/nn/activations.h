// Activations that the kernel seam doesn't have.
#pragma once

#include <functional>

#include <mlx/array.h>

namespace mlxlm::nn {

namespace mx = mlx::core;

using Activation = std::function<mx::array(const mx::array&)>;

// x > 0: softplus(a) x^2 + beta x; else (expm1(min(x, eps)) - x)
// (beta + softplus(b)) + beta x. All four are scalars. Method: xIELU,
// arXiv:2411.13010.
Activation xielu(const mx::array& a,
                 const mx::array& b,
                 const mx::array& beta,
                 const mx::array& eps);

// gelu(max(0, x - cutoff)), the cutoff so many standard deviations over the
// mean of the last axis that `share` of normally distributed numbers lies below
// it. Method: mlx_lm/models/gemma3n.py.
Activation sparse_gelu(double share);

}  // namespace mlxlm::nn
