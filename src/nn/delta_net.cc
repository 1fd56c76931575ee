#include "nn/delta_net.h"

#include <cmath>

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {
namespace {

// x / |x| * scale, as a root mean square norm of `size` numbers.
kernels::Norm unit_norm(int size, double scale) {
  auto weight = mx::full(
      {size}, static_cast<float>(scale / std::sqrt(size)), mx::float32);
  return {.weight = weight, .eps = static_cast<float>(1e-6 / size)};
}

mx::array run_chain(mx::array x,
                    const std::vector<kernels::Linear>& chain,
                    std::size_t from) {
  for (std::size_t i = from; i < chain.size(); ++i) {
    x = kernels::table().linear_residual(x, chain[i], nullptr, nullptr, 1.0f);
  }
  return x;
}

}  // namespace

DeltaNet::DeltaNet(DeltaNetParts parts)
    : parts_(std::move(parts)),
      q_norm_(unit_norm(parts_.key_size, 1 / std::sqrt(parts_.key_size))),
      k_norm_(unit_norm(parts_.key_size, 1)) {}

CachePtr DeltaNet::make_cache() const {
  return make_arrays_cache(static_cast<int>(parts_.convs.size()) + 1);
}

std::vector<kernels::Linear*> DeltaNet::linears() {
  std::vector<kernels::Linear*> all{&parts_.beta, &parts_.out};
  for (auto* chain : {&parts_.qkv, &parts_.decay, &parts_.gate}) {
    for (auto& each : *chain) all.push_back(&each);
  }
  return all;
}

// -> q, k [B, T, Hk, Dk], v [B, T, H, Dv].
std::vector<mx::array> DeltaNet::convolve(std::vector<mx::array> inputs,
                                          Cache* cache) const {
  const auto& p = parts_;
  const RecurrentState state(cache);
  if (inputs.size() > p.convs.size()) inputs = {mx::concatenate(inputs, -1)};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = state.convolve(i, inputs[i], p.convs[i]);
  }
  if (inputs.size() == 1) {
    const int keys = p.num_key_heads * p.key_size;
    inputs = mx::split(inputs[0], mx::Shape{keys, 2 * keys}, -1);
  }
  const int rows = inputs[0].shape(0);
  const int tokens = inputs[0].shape(1);
  for (int i = 0; i < 3; ++i) {
    inputs[i] = mx::reshape(inputs[i],
                            {rows,
                             tokens,
                             i < 2 ? p.num_key_heads : p.num_heads,
                             i < 2 ? p.key_size : p.value_size});
  }
  return inputs;
}

// step [B, T, H] or [B, T, H, Dk].
mx::array DeltaNet::decay_of(const mx::array& step) const {
  const auto& p = parts_;
  auto x = mx::add(mx::astype(step, mx::float32), p.step_bias);
  if (p.lower_bound) {
    return mx::exp(mx::multiply(mx::array(*p.lower_bound),
                                mx::sigmoid(mx::multiply(p.rate, x))));
  }
  auto softplus = mx::logaddexp(x, mx::array(0.0f));
  return mx::exp(mx::negative(mx::multiply(p.rate, softplus)));
}

mx::array DeltaNet::operator()(const MixerInput& input,
                               const Residual& residual) const {
  const auto& p = parts_;
  const auto& table = kernels::table();
  std::vector<const kernels::Linear*> linears{&p.beta, &p.decay[0], &p.gate[0]};
  for (const auto& each : p.qkv) linears.push_back(&each);
  auto made = project(input, linears);

  const int rows = input.x.shape(0);
  const int tokens = input.x.shape(1);
  auto step = run_chain(made[1], p.decay, 1);
  if (p.rate.ndim() == 2) {
    step = mx::reshape(step, {rows, tokens, p.num_heads, p.key_size});
  }
  auto beta = mx::sigmoid(mx::astype(made[0], mx::float32));
  if (p.beta_scale != 1.0f) {
    beta = mx::multiply(beta, mx::array(p.beta_scale));
  }
  auto qkv = convolve(std::vector<mx::array>(made.begin() + 3, made.end()),
                      input.cache);

  auto y = RecurrentState(input.cache)
               .scan(p.convs.size(),
                     kernels::MatrixScan{.q = table.norm(qkv[0], q_norm_),
                                         .k = table.norm(qkv[1], k_norm_),
                                         .v = qkv[2],
                                         .decay = decay_of(step),
                                         .beta = beta});

  auto gate = mx::astype(run_chain(made[2], p.gate, 1), mx::float32);
  auto factor = mx::sigmoid(gate);
  if (!p.sigmoid_gate) factor = mx::multiply(factor, gate);
  y = mx::multiply(table.norm(y, p.norm),
                   mx::astype(mx::reshape(factor, y.shape()), y.dtype()));
  return finish(mx::reshape(y, {rows, tokens, -1}), p.out, residual);
}

}  // namespace mlxlm::nn
