#include "nn/mlp.h"

#include <mlx/mlx.h>

namespace mlxlm::nn {
namespace {

mx::array project(const mx::array& x, const kernels::Linear& linear) {
  return kernels::table().linear_residual(x, linear, nullptr, nullptr, 1.0f);
}

}  // namespace

mx::array Mlp::operator()(const mx::array& x,
                          const kernels::Norm* norm,
                          const Residual& residual) const {
  const auto& table = kernels::table();
  auto hidden =
      table.norm_gated_mlp(x, norm, gate ? &*gate : nullptr, up, activation);
  if (hidden_norm) hidden = table.norm(hidden, *hidden_norm);
  return table.linear_residual(
      hidden, down, residual.post_norm, residual.stream, residual.scale);
}

Experts::Choice Experts::choose(const mx::array& x) const {
  const std::vector<int> last{-1};
  auto logits = project(x, router);
  if (kind == Router::softmax_top_k) {
    logits = mx::softmax(logits, last, /*precise=*/true);
  }
  auto order = mx::argpartition(mx::negative(logits), num_chosen - 1, -1);
  auto stop = order.shape();
  stop.back() = num_chosen;
  auto indices = mx::slice(order, mx::Shape(stop.size(), 0), stop);
  auto scores = mx::take_along_axis(logits, indices, -1);
  if (kind == Router::top_k_softmax) {
    scores = mx::softmax(scores, last, /*precise=*/true);
  }
  if (normalize) {
    scores = mx::divide(scores, mx::sum(scores, -1, /*keepdims=*/true));
  }
  return {indices, scores};
}

mx::array Experts::operator()(const mx::array& x,
                              const kernels::Norm* norm,
                              const Residual& residual) const {
  const auto& table = kernels::table();
  auto input = norm != nullptr ? table.norm(x, *norm) : x;
  auto [indices, scores] = choose(input);
  auto y =
      table.expert_mlp(input, {&gate, &up, &down, activation}, indices, scores);
  if (shared) {
    auto extra = (*shared)(input, nullptr, {});
    if (shared_gate) {
      extra = mx::multiply(mx::sigmoid(project(input, *shared_gate)), extra);
    }
    y = mx::add(y, extra);
  }
  if (residual.post_norm != nullptr) y = table.norm(y, *residual.post_norm);
  if (residual.scale != 1.0f) {
    y = mx::multiply(y, mx::array(residual.scale, y.dtype()));
  }
  return residual.stream != nullptr ? mx::add(*residual.stream, y) : y;
}

}  // namespace mlxlm::nn
