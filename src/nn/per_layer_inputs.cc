#include "nn/per_layer_inputs.h"

#include <cmath>

#include <mlx/mlx.h>

#include "kernels/seam.h"
#include "nn/linear.h"

namespace mlxlm::nn {
namespace {

mx::array scaled(const mx::array& x, double factor) {
  return mx::multiply(x, mx::array(static_cast<float>(factor), x.dtype()));
}

}  // namespace

mx::array PerLayerInputs::operator()(const mx::array& tokens,
                                     const mx::array& h) const {
  auto known = mx::less(tokens, mx::array(vocabulary_size, tokens.dtype()));
  auto rows = mx::where(known, tokens, mx::zeros_like(tokens));
  auto looked_up = embed(table, rows, h.dtype());
  const int size = looked_up.shape(-1) / num_layers;
  const mx::Shape shape{h.shape(0), h.shape(1), num_layers, size};
  looked_up = mx::reshape(scaled(looked_up, std::sqrt(double(size))), shape);
  auto projected =
      scaled(apply(h, projection), 1 / std::sqrt(double(h.shape(-1))));
  projected = kernels::table().norm(mx::reshape(projected, shape), norm);
  return scaled(mx::add(projected, looked_up), std::sqrt(0.5));
}

mx::array PerLayerGate::operator()(const mx::array& x,
                                   const mx::array& input) const {
  auto gated = mx::multiply(
      kernels::activate(apply(x, gate), kernels::Activation::gelu_tanh), input);
  return kernels::table().norm(apply(gated, projection), norm);
}

}  // namespace mlxlm::nn
