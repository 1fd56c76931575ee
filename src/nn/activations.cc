#include "nn/activations.h"

#include <cmath>

#include <mlx/mlx.h>

#include "kernels/seam.h"

namespace mlxlm::nn {
namespace {

mx::array softplus(const mx::array& x) {
  return mx::logaddexp(x, mx::array(0.0f, x.dtype()));
}

}  // namespace

Activation xielu(const mx::array& a,
                 const mx::array& b,
                 const mx::array& beta,
                 const mx::array& eps) {
  auto positive = softplus(a);
  auto negative = mx::add(beta, softplus(b));
  return [=](const mx::array& x) {
    auto linear = mx::multiply(beta, x);
    auto above = mx::multiply(positive, mx::square(x));
    auto below =
        mx::multiply(mx::subtract(mx::expm1(mx::minimum(x, eps)), x), negative);
    auto zero = mx::array(0.0f, x.dtype());
    return mx::astype(
        mx::add(mx::where(mx::greater(x, zero), above, below), linear),
        x.dtype());
  };
}

Activation sparse_gelu(double share) {
  const auto quantile =
      mx::multiply(mx::array(static_cast<float>(std::sqrt(2.0))),
                   mx::erfinv(mx::array(static_cast<float>(2 * share - 1))));
  return [=](const mx::array& x) {
    auto mean = mx::mean(x, -1, /*keepdims=*/true);
    auto deviation = mx::std(x, -1, /*keepdims=*/true);
    auto cutoff =
        mx::add(mean, mx::multiply(deviation, mx::astype(quantile, x.dtype())));
    auto zero = mx::array(0.0f, x.dtype());
    return kernels::activate(mx::maximum(zero, mx::subtract(x, cutoff)),
                             kernels::Activation::gelu_tanh);
  };
}

}  // namespace mlxlm::nn
