#include "nn/lightning_attention.h"

#include <algorithm>
#include <cmath>

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {
namespace {

// 2^(-8 / n), 2^(-16 / n), ..., for n a power of two.
std::vector<double> alibi_slopes(int n) {
  std::vector<double> slopes;
  const double ratio = std::exp2(-8.0 / n);
  for (int i = 1; i <= n; ++i) slopes.push_back(std::pow(ratio, i));
  return slopes;
}

}  // namespace

mx::array lightning_decay(int num_heads, int layer, int num_layers) {
  int power = 1;
  while (2 * power <= num_heads) power *= 2;
  auto slopes = alibi_slopes(power);
  const auto finer = alibi_slopes(2 * power);
  for (std::size_t i = 0; slopes.size() < std::size_t(num_heads); i += 2) {
    slopes.push_back(finer[i]);
  }
  const double depth = double(std::max(0, layer)) / std::max(1, num_layers - 1);
  std::vector<float> decay;
  for (double slope : slopes) {
    decay.push_back(static_cast<float>(std::exp(-slope * (1 - depth + 1e-5))));
  }
  return mx::array(decay.data(), {num_heads});
}

CachePtr LightningAttention::make_cache() const { return make_arrays_cache(1); }

mx::array LightningAttention::operator()(const MixerInput& input,
                                         const Residual& residual) const {
  const auto& p = parts_;
  const auto& table = kernels::table();
  const int rows = input.x.shape(0);
  const int tokens = input.x.shape(1);
  std::optional<kernels::Rope> turn;
  if (p.rope != nullptr) turn = p.rope->at(tokens, input.runs[0].offset);
  auto pointer = [](const auto& optional) {
    return optional ? &*optional : nullptr;
  };
  const kernels::HeadProjection projections[] = {
      {&p.q, p.num_heads, pointer(p.q_norm), pointer(turn)},
      {&p.k, p.num_heads, pointer(p.k_norm), pointer(turn)},
      {&p.v, p.num_heads, nullptr, nullptr}};
  auto qkv =
      kernels::norm_heads(table, input.x, input.norm, projections, input.runs);
  for (auto& each : qkv) each = mx::swapaxes(each, 1, 2);

  auto y =
      RecurrentState(input.cache)
          .scan(
              0,
              kernels::MatrixScan{
                  .q = mx::multiply(qkv[0], mx::array(p.scale, qkv[0].dtype())),
                  .k = qkv[1],
                  .v = qkv[2],
                  .decay =
                      mx::broadcast_to(p.decay, {rows, tokens, p.num_heads})},
              /*transposed=*/true);
  auto groups = mx::reshape(y, {rows, tokens, p.norm_groups, -1});
  y = mx::multiply(
      mx::reshape(table.norm(groups, {.eps = p.norm_eps}), {rows, tokens, -1}),
      p.norm_weight);
  y = mx::multiply(y, mx::sigmoid(project(input, p.gate)));
  return finish(y, p.out, residual);
}

}  // namespace mlxlm::nn
