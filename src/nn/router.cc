#include "nn/router.h"

#include <limits>
#include <vector>

#include <mlx/mlx.h>

namespace mlxlm::nn {
namespace {

const std::vector<int> kLast{-1};

mx::array constant(float value) { return mx::array(value); }

mx::array softplus(const mx::array& x) { return mx::logaddexp(x, constant(0)); }

mx::array first_of(const mx::array& x, int axis, int count) {
  auto stop = x.shape();
  stop.at(axis < 0 ? stop.size() + axis : axis) = count;
  return mx::slice(x, mx::Shape(stop.size(), 0), stop);
}

// The `count` largest along the last axis, in no order.
mx::array largest(const mx::array& x, int count) {
  auto order = mx::argpartition(mx::negative(x), count - 1, -1);
  return first_of(order, -1, count);
}

mx::array all_scores(const mx::array& logits, RouterScore kind) {
  switch (kind) {
    case RouterScore::softmax:
      return mx::softmax(logits, kLast, /*precise=*/true);
    case RouterScore::sigmoid:
      return mx::sigmoid(logits);
    case RouterScore::sqrt_softplus:
      return mx::sqrt(softplus(logits));
    default:
      return logits;
  }
}

// dropped_score for the experts of all but the best groups. scores [B, L, E].
mx::array best_groups(const mx::array& scores, const RouterSpec& spec) {
  const int num_dropped = spec.num_groups - spec.num_chosen_groups;
  if (num_dropped <= 0) return scores;
  auto grouped = mx::unflatten(scores, -1, {spec.num_groups, -1});
  auto group_scores =
      spec.group_score == GroupScore::best
          ? mx::max(grouped, -1, /*keepdims=*/true)
          : mx::sum(mx::topk(grouped, 2, -1), -1, /*keepdims=*/true);
  auto dropped = first_of(
      mx::argpartition(group_scores, num_dropped - 1, -2), -2, num_dropped);
  auto kept =
      mx::put_along_axis(grouped, dropped, constant(spec.dropped_score), -2);
  return mx::flatten(kept, -2, -1);
}

Router::Choice mix_sparsely(const mx::array& logits, const RouterSpec& spec) {
  const auto lowest = constant(-std::numeric_limits<float>::infinity());
  auto left = logits;
  std::vector<mx::array> indices, scores;
  for (int i = 0; i < spec.num_chosen; ++i) {
    auto best = mx::max(left, -1, /*keepdims=*/true);
    auto index = mx::argmax(left, -1, /*keepdims=*/true);
    auto distance = mx::divide(mx::subtract(best, logits),
                               mx::maximum(mx::abs(logits), best));
    auto close = mx::where(
        mx::greater(distance, constant(2 * spec.jitter)), lowest, left);
    close = mx::softmax(close, kLast, /*precise=*/true);
    indices.push_back(index);
    scores.push_back(mx::take_along_axis(close, index, -1));
    left = mx::put_along_axis(left, index, lowest, -1);
  }
  return {mx::concatenate(indices, -1), mx::concatenate(scores, -1)};
}

}  // namespace

Router::Choice Router::operator()(const mx::array& x,
                                  const mx::array* tokens) const {
  auto logits = mx::astype(
      kernels::table().linear_residual(x, linear, nullptr, nullptr, 1.0f),
      mx::float32);
  if (spec.logit_scale != 1.0f) {
    logits = mx::multiply(logits, constant(spec.logit_scale));
  }
  if (spec.softcap > 0) {
    auto cap = constant(spec.softcap);
    logits = mx::multiply(mx::tanh(mx::divide(logits, cap)), cap);
  }
  if (spec.score == RouterScore::sparse_mixer) {
    return mix_sparsely(logits, spec);
  }
  auto scores = all_scores(logits, spec.score);
  auto order = selection_bias
                   ? mx::add(scores, mx::astype(*selection_bias, mx::float32))
                   : scores;
  auto indices = table && tokens != nullptr
                     ? mx::take(*table, *tokens, 0)
                     : largest(best_groups(order, spec), spec.num_chosen);
  scores = mx::take_along_axis(scores, indices, -1);
  if (spec.score == RouterScore::chosen_softmax) {
    scores = mx::softmax(scores, kLast, /*precise=*/true);
  } else if (spec.score == RouterScore::chosen_sigmoid) {
    scores = mx::sigmoid(scores);
  }
  if (spec.normalize) {
    auto sum = mx::sum(scores, -1, /*keepdims=*/true);
    scores = mx::divide(scores, mx::maximum(sum, constant(1e-20f)));
  }
  if (expert_scale) {
    auto scales = mx::astype(*expert_scale, mx::float32);
    scores = mx::multiply(scores, mx::take(scales, indices));
  }
  if (spec.scale != 1.0f) scores = mx::multiply(scores, constant(spec.scale));
  return {indices, scores};
}

}  // namespace mlxlm::nn
