#include "sample/filters.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <mlx/mlx.h>

namespace mlxlm {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A number takes the array's type, as Python's scalars do.
mx::array scalar(double value, const mx::array& like) {
  return mx::array(static_cast<float>(value), like.dtype());
}

mx::array mask_out(const mx::array& removed, const mx::array& logprobs) {
  return mx::where(removed, scalar(-kInfinity, logprobs), logprobs);
}

// The columns [begin, end) of x [B, N].
mx::array columns(const mx::array& x, int begin, int end) {
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start.back() = begin;
  stop.back() = end;
  return mx::slice(x, std::move(start), std::move(stop));
}

}  // namespace

mx::array apply_top_p(const mx::array& logprobs, double top_p) {
  mx::array sorted = mx::sort(logprobs, -1);
  mx::array probs = mx::exp(mx::astype(sorted, mx::float32));
  mx::array mass_above =
      mx::cumsum(probs, -1, /*reverse=*/true, /*inclusive=*/false);
  mx::array total = mx::add(columns(mass_above, 0, 1), columns(probs, 0, 1));
  mx::array dropped = mx::sum(
      mx::astype(mx::greater_equal(mass_above,
                                   mx::multiply(scalar(top_p, total), total)),
                 mx::int32),
      -1,
      /*keepdims=*/true);
  // Without any mass every token counts as dropped: keep the index valid.
  dropped = mx::minimum(dropped, mx::array(logprobs.shape(-1) - 1));
  mx::array threshold = mx::take_along_axis(sorted, dropped, -1);
  return mask_out(mx::less(logprobs, threshold), logprobs);
}

mx::array apply_min_p(const mx::array& logprobs,
                      double min_p,
                      int min_tokens_to_keep) {
  int vocabulary = logprobs.shape(-1);
  if (min_tokens_to_keep >= vocabulary) {
    return logprobs;
  }
  mx::array best = mx::max(logprobs, -1, /*keepdims=*/true);
  mx::array threshold = mx::add(best, scalar(std::log(min_p), logprobs));
  mx::array removed = mx::less(logprobs, threshold);
  if (min_tokens_to_keep > 1) {
    mx::array order = mx::argpartition(logprobs, -min_tokens_to_keep, -1);
    mx::array kept =
        columns(order, vocabulary - min_tokens_to_keep, vocabulary);
    removed = mx::put_along_axis(removed, kept, mx::array(false), -1);
  }
  return mask_out(removed, logprobs);
}

mx::array apply_xtc(const mx::array& logprobs,
                    double probability,
                    double threshold,
                    const std::vector<int>& special_tokens) {
  mx::array probs = mx::softmax(logprobs, -1);
  mx::array candidates = mx::where(mx::greater(probs, scalar(threshold, probs)),
                                   probs,
                                   scalar(kInfinity, probs));
  // No candidate: the least is infinite and nothing is removed.
  mx::array removed =
      mx::greater(probs, mx::min(candidates, -1, /*keepdims=*/true));
  if (!special_tokens.empty()) {
    mx::array ids(special_tokens.begin(),
                  {static_cast<int>(special_tokens.size()), 1},
                  mx::int32);
    mx::array all = mx::arange(logprobs.shape(-1), mx::int32);
    mx::array special = mx::any(mx::equal(ids, all), 0);
    removed = mx::logical_and(removed, mx::logical_not(special));
  }
  mx::array draw = mx::random::uniform(0.0f, 1.0f, {});
  return mx::where(
      mx::greater(draw, mx::array(static_cast<float>(probability))),
      logprobs,
      mask_out(removed, logprobs));
}

mx::array apply_top_k(const mx::array& logprobs, int top_k) {
  int vocabulary = logprobs.shape(-1);
  if (top_k >= vocabulary) {
    return logprobs;
  }
  mx::array order = mx::argpartition(mx::negative(logprobs), top_k - 1, -1);
  return mx::put_along_axis(logprobs,
                            columns(order, top_k, vocabulary),
                            scalar(-kInfinity, logprobs),
                            -1);
}

}  // namespace mlxlm
