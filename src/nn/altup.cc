#include "nn/altup.h"

#include <mlx/mlx.h>

#include "nn/linear.h"

namespace mlxlm::nn {
namespace {

// [..., D] -> [..., 1]: the root of the mean square.
mx::array magnitude(const mx::array& x) {
  return mx::sqrt(mx::mean(mx::square(x), -1, /*keepdims=*/true));
}

mx::array with_magnitude(const mx::array& x, const mx::array& wanted) {
  return mx::multiply(x, mx::divide(wanted, magnitude(x)));
}

}  // namespace

mx::array stream(const mx::array& streams, int index) {
  return mx::take(streams, index, 0);
}

mx::array AltUp::modalities(const mx::array& x) const {
  auto width = mx::array(static_cast<float>(x.shape(-1)), x.dtype());
  auto inputs = mx::divide(kernels::table().norm(x, router_norm), width);
  return mx::tanh(apply(inputs, router));
}

mx::array AltUp::predict(const mx::array& streams) const {
  const int count = streams.shape(0);
  auto routed = modalities(stream(streams, active));
  auto shape = routed.shape();
  shape.push_back(count);
  auto weights =
      mx::swapaxes(mx::reshape(apply(routed, prediction), shape), -1, -2);
  auto last = mx::transpose(streams, {1, 2, 3, 0});
  auto mixed = mx::transpose(mx::matmul(last, weights), {3, 0, 1, 2});
  return mx::add(mixed, streams);
}

mx::array AltUp::correct(const mx::array& predictions,
                         const mx::array& activated) const {
  auto weights = mx::add(apply(modalities(activated), correction),
                         mx::array(1.0f, activated.dtype()));
  auto news = mx::subtract(activated, stream(predictions, active));
  auto by_stream = mx::expand_dims(mx::transpose(weights, {2, 0, 1}), -1);
  return mx::add(mx::multiply(mx::expand_dims(news, 0), by_stream),
                 predictions);
}

mx::array split_streams(const mx::array& h,
                        const std::vector<kernels::Linear>& projections) {
  const auto size = magnitude(h);
  std::vector<mx::array> streams{h};
  for (const auto& each : projections) {
    streams.push_back(with_magnitude(apply(h, each), size));
  }
  return mx::stack(streams, 0);
}

mx::array join_streams(const mx::array& streams,
                       const std::vector<kernels::Linear>& projections) {
  std::vector<mx::array> parts{stream(streams, 0)};
  const auto size = magnitude(parts[0]);
  for (std::size_t i = 0; i < projections.size(); ++i) {
    auto projected =
        apply(stream(streams, static_cast<int>(i) + 1), projections[i]);
    parts.push_back(with_magnitude(projected, size));
  }
  return mx::mean(mx::stack(parts, 0), 0);
}

mx::array Laurel::operator()(const mx::array& x) const {
  auto around = apply(apply(x, left), right);
  return mx::add(x, kernels::table().norm(around, norm));
}

}  // namespace mlxlm::nn
