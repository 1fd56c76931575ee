#include "nn/hyper_connection.h"

#include <vector>

#include <mlx/mlx.h>

namespace mlxlm::nn {
namespace {

// Sinkhorn's iteration. x [..., S, S]
mx::array balanced(mx::array x, int num_rounds, float eps) {
  auto normalize = [&](int axis) {
    auto sum = mx::sum(x, axis, /*keepdims=*/true);
    x = mx::divide(x, mx::add(sum, mx::array(eps)));
  };
  normalize(-2);
  for (int i = 1; i < num_rounds; ++i) {
    normalize(-1);
    normalize(-2);
  }
  return x;
}

// [B, L, S, D] -> [B, L, outputs]
mx::array scores_of(const mx::array& streams,
                    const mx::array& weight,
                    float eps) {
  auto flat = mx::astype(mx::flatten(streams, 2, 3), mx::float32);
  flat = kernels::table().norm(flat, {.eps = eps});
  return mx::matmul(flat, mx::transpose(weight));
}

}  // namespace

mx::array HyperHead::operator()(const mx::array& streams) const {
  auto scores = mx::multiply(scores_of(streams, weight, norm_eps), scale);
  auto read = mx::sigmoid(mx::add(scores, base));
  return collapse(streams, mx::add(read, mx::array(eps)));
}

HyperMix HyperConnection::operator()(const mx::array& streams) const {
  const int n = num_streams;
  auto mixed =
      mx::split(scores_of(streams, weight, norm_eps), mx::Shape{n, 2 * n}, -1);
  const auto scales = mx::split(scale, 3);
  const auto bases = mx::split(base, mx::Shape{n, 2 * n}, 0);
  for (int i = 0; i < 3; ++i) {
    mixed[i] = mx::add(mx::multiply(mixed[i], scales[i]), bases[i]);
  }
  auto carry = mx::softmax(mx::unflatten(mixed[2], -1, {n, n}),
                           std::vector<int>{-1},
                           /*precise=*/true);
  return {mx::add(mx::sigmoid(mixed[0]), mx::array(eps)),
          mx::multiply(mx::sigmoid(mixed[1]), mx::array(2.0f)),
          balanced(mx::add(carry, mx::array(eps)), num_rounds, eps)};
}

mx::array collapse(const mx::array& streams, const mx::array& read) {
  auto sum = mx::sum(
      mx::multiply(mx::expand_dims(read, -1), mx::astype(streams, mx::float32)),
      2);
  return mx::astype(sum, streams.dtype());
}

mx::array expand(const mx::array& y,
                 const mx::array& streams,
                 const HyperMix& mix) {
  auto carried = mx::matmul(mx::swapaxes(mix.carry, -1, -2),
                            mx::astype(streams, mx::float32));
  auto written = mx::multiply(mx::expand_dims(mix.write, -1),
                              mx::expand_dims(mx::astype(y, mx::float32), 2));
  return mx::astype(mx::add(written, carried), streams.dtype());
}

}  // namespace mlxlm::nn
