#include "generate/draft_draw.h"

#include <mlx/mlx.h>

namespace mlxlm {

const mx::array& DraftDraw::draw(const mx::array& logits) {
  std::optional<mx::array> before;
  if (!tokens_.empty()) {
    before = mx::concatenate(tokens_);
  }
  auto logprobs = sampling_.logprobs(logits, before);
  if (sampling_.has_weights()) {
    weights_.push_back(sampling_.log_weights(logprobs));
    tokens_.push_back(
        mx::astype(mx::random::categorical(weights_.back()), mx::int32));
  } else {
    tokens_.push_back(sampling_.draw_from(logprobs));
  }
  mx::async_eval(tokens_.back());
  return tokens_.back();
}

Draft DraftDraw::draft() const {
  Draft draft{mx::concatenate(tokens_)};
  if (!weights_.empty()) {
    draft.log_weights = mx::concatenate(weights_, 0);
  }
  return draft;
}

}  // namespace mlxlm
