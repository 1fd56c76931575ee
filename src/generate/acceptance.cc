#include "generate/acceptance.h"

#include <mlx/mlx.h>

namespace mlxlm {
namespace {

mx::array row_of(const mx::array& rows, int i) {
  return mx::slice(rows, {i, 0}, {i + 1, rows.shape(1)});
}

mx::array normalized(const mx::array& log_weights) {
  return mx::subtract(log_weights, mx::logsumexp(log_weights, -1, true));
}

// Every place at once: each token depends on the logits of its place only.
std::vector<StepResult> accept_greedy(const mx::array& logits,
                                      const Draft& draft,
                                      const Sampling& sampling) {
  auto logprobs = sampling.logprobs(logits);
  auto tokens = sampling.draw_from(logprobs);
  mx::eval(tokens, draft.tokens);
  std::vector<StepResult> results;
  for (int i = 0; i <= draft.size(); ++i) {
    const int token = tokens.data<int>()[i];
    const bool stands =
        i < draft.size() && token == draft.tokens.data<int>()[i];
    results.push_back({token, mx::squeeze(row_of(logprobs, i), 0), stands});
    if (!stands) break;
  }
  return results;
}

// A token drawn as without a draft.
StepResult draw_plainly(const mx::array& logits,
                        std::optional<int> drafted,
                        const Sampling& sampling) {
  Sampled sampled = sampling.draw(logits);
  const int token = sampled.token.item<int>();
  return {token, sampled.logprobs, token == drafted};
}

// The drafted token, drawn with `log_weights` [1, V], or one in its place.
StepResult draw_by_rejection(const mx::array& logits,
                             int drafted,
                             const mx::array& log_weights,
                             const Sampling& sampling) {
  auto logprobs = sampling.logprobs(logits);
  auto flat = mx::squeeze(logprobs, 0);
  auto log_p = normalized(sampling.log_weights(logprobs));
  auto log_q = normalized(log_weights);
  if (stands(log_p, log_q, mx::array({drafted})).item<bool>()) {
    return {drafted, flat, true};
  }
  auto instead = mx::random::categorical(residual(log_p, log_q));
  return {mx::astype(instead, mx::int32).item<int>(), flat, false};
}

}  // namespace

mx::array stands(const mx::array& log_p,
                 const mx::array& log_q,
                 const mx::array& tokens) {
  auto at = mx::expand_dims(tokens, 1);
  auto ratio = mx::subtract(mx::take_along_axis(log_p, at, 1),
                            mx::take_along_axis(log_q, at, 1));
  auto draw = mx::random::uniform({tokens.shape(0), 1});
  return mx::squeeze(mx::less(draw, mx::exp(ratio)), 1);
}

mx::array residual(const mx::array& log_p, const mx::array& log_q) {
  auto excess = mx::subtract(mx::exp(log_p), mx::exp(log_q));
  auto weights = mx::maximum(excess, mx::array(0.0f));
  // Equal up to rounding: a token that didn't stand was bad luck.
  auto any = mx::any(mx::greater(weights, mx::array(0.0f)), -1, true);
  return mx::where(any, mx::log(weights), log_p);
}

std::vector<StepResult> accept(const mx::array& logits,
                               const Draft& draft,
                               Sampling& sampling) {
  if (sampling.is_greedy()) {
    return accept_greedy(logits, draft, sampling);
  }
  mx::eval(logits, draft.tokens);
  const bool by_rejection = draft.log_weights && sampling.has_weights();
  std::vector<StepResult> results;
  for (int i = 0; i <= draft.size(); ++i) {
    auto row = row_of(logits, i);
    std::optional<int> drafted;
    if (i < draft.size()) {
      drafted = draft.tokens.data<int>()[i];
    }
    results.push_back(
        drafted && by_rejection
            ? draw_by_rejection(
                  row, *drafted, row_of(*draft.log_weights, i), sampling)
            : draw_plainly(row, drafted, sampling));
    sampling.add_history(std::vector<int>{results.back().token});
    if (!results.back().from_draft) break;
  }
  return results;
}

}  // namespace mlxlm
