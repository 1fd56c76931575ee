#include "nn/mlp.h"

#include <vector>

#include <mlx/mlx.h>

#include "nn/linear.h"
#include "nn/sharding.h"
#include "ranks/ranks.h"

namespace mlxlm::nn {
namespace {

mx::array normed(const mx::array& x, const std::optional<kernels::Norm>& norm) {
  return norm ? kernels::table().norm(x, *norm) : x;
}

}  // namespace

mx::array Mlp::hidden(const mx::array& x, const kernels::Norm* norm) const {
  const auto& table = kernels::table();
  if (!own_activation && !clamp.active()) {
    return table.norm_gated_mlp(
        x, norm, gate ? &*gate : nullptr, up, activation);
  }
  std::vector<const kernels::Linear*> linears;
  if (gate) linears.push_back(&*gate);
  linears.push_back(&up);
  auto made = table.norm_linear(x, norm, linears);
  if (clamp.active()) {
    return kernels::clamped_gate(made[0], made[1], activation, clamp);
  }
  auto activated = own_activation(made[0]);
  return gate ? mx::multiply(activated, made[1]) : activated;
}

std::vector<kernels::Linear*> Mlp::linears() {
  std::vector<kernels::Linear*> all{&up, &down};
  if (gate) all.push_back(&*gate);
  return all;
}

mx::array Mlp::operator()(const mx::array& x,
                          const kernels::Norm* norm,
                          const Residual& residual) const {
  const auto& table = kernels::table();
  auto y = hidden(x, norm);
  if (hidden_norm) y = table.norm(y, *hidden_norm);
  return linear_residual(y, down, residual, partial);
}

std::vector<kernels::Linear*> Experts::linears() {
  std::vector<kernels::Linear*> all{&router.linear, &up, &down};
  for (auto* each : {&gate, &shared_gate, &to_latent, &from_latent}) {
    if (*each) all.push_back(&**each);
  }
  if (shared) {
    for (auto* each : shared->linears()) all.push_back(each);
  }
  return all;
}

mx::array Experts::answer_of_chosen(const mx::array& x,
                                    const mx::array& router_input,
                                    const mx::array* tokens) const {
  auto [indices, scores] = router(router_input, tokens);
  auto input = x;
  if (scale_input) {
    input = mx::multiply(x, mx::astype(scores, x.dtype()));
    scores = mx::ones_like(scores);
  }
  const kernels::Experts experts{
      gate ? &*gate : nullptr, &up, &down, activation, clamp};
  if (norms.each) return sum_of_normed(input, experts, indices, scores);
  auto run = [&](const mx::array& which, const mx::array& weights) {
    return kernels::table().expert_mlp(input, experts, which, weights);
  };
  if (router.linear.weight.shape(0) == num_experts) return run(indices, scores);
  auto none = mx::zeros_like(scores);
  auto is_self =
      mx::greater_equal(indices, mx::array(num_experts, indices.dtype()));
  auto y = run(mx::where(is_self, mx::zeros_like(indices), indices),
               mx::where(is_self, none, scores));
  auto weight =
      mx::sum(mx::where(is_self, scores, none), -1, /*keepdims=*/true);
  return mx::add(y, mx::multiply(x, mx::astype(weight, x.dtype())));
}

mx::array Experts::sum_of_normed(const mx::array& x,
                                 const kernels::Experts& experts,
                                 const mx::array& indices,
                                 const mx::array& scores) const {
  const auto& table = kernels::table();
  const int num_chosen = indices.shape(2);
  // Every choice as a token of its own.
  const mx::Shape apart{x.shape(0), x.shape(1) * num_chosen, 1};
  auto answers = table.expert_mlp(mx::repeat(x, num_chosen, 1),
                                  experts,
                                  mx::reshape(indices, apart),
                                  mx::ones(apart, scores.dtype()));
  answers = mx::unflatten(answers, 1, {x.shape(1), num_chosen});
  answers =
      table.norm(mx::multiply(answers, norms.each->gain), norms.each->norm);
  auto weights = mx::expand_dims(mx::astype(scores, answers.dtype()), -1);
  return mx::sum(mx::multiply(answers, weights), 2);
}

mx::array Experts::with_shared(const mx::array& x,
                               const mx::array& chosen) const {
  if (!shared) return chosen;
  auto extra = (*shared)(sums_parts() ? after(x, chosen) : x, nullptr, {});
  if (sums_parts()) extra = Ranks::all().sum(extra);
  extra = normed(extra, norms.shared_output);
  if (shared_kind == SharedGate::none) return mx::add(chosen, extra);
  auto logits = apply(x, *shared_gate);
  if (shared_kind == SharedGate::sigmoid) {
    return mx::add(chosen, mx::multiply(mx::sigmoid(logits), extra));
  }
  auto weights = mx::split(
      mx::softmax(logits, std::vector<int>{-1}, /*precise=*/true), 2, -1);
  return mx::add(mx::multiply(chosen, weights[0]),
                 mx::multiply(extra, weights[1]));
}

mx::array Experts::operator()(const mx::array& x,
                              const kernels::Norm* norm,
                              const Residual& residual,
                              const mx::array* tokens) const {
  const auto& table = kernels::table();
  const auto input = norm != nullptr ? table.norm(x, *norm) : x;
  auto input_of = [&](const std::optional<kernels::Norm>& own) {
    return own ? normed(x, own) : input;
  };
  auto within = [&](const mx::array& y,
                    const std::optional<kernels::Linear>& linear) {
    return linear ? table.linear_residual(y, *linear, nullptr, nullptr, 1.0f)
                  : y;
  };
  auto sum = answer_of_chosen(
      normed(within(input_of(norms.chosen), to_latent), norms.latent),
      input_of(norms.router),
      tokens);
  if (sums_parts()) sum = Ranks::all().sum(sum);
  auto chosen = within(normed(sum, norms.latent_output), from_latent);
  auto y = with_shared(input, normed(chosen, norms.chosen_output));
  if (norms.output_gain) y = mx::multiply(y, *norms.output_gain);
  if (partial && !sums_parts()) return sum_residual(y, residual);
  if (residual.post_norm != nullptr) y = table.norm(y, *residual.post_norm);
  if (residual.scale != 1.0f) {
    y = mx::multiply(y, mx::array(residual.scale, y.dtype()));
  }
  return residual.stream != nullptr ? mx::add(*residual.stream, y) : y;
}

}  // namespace mlxlm::nn
