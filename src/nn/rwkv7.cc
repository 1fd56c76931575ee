#include "nn/rwkv7.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"

namespace mlxlm::nn {
namespace {

constexpr float kHeadNormEps = 64e-5f;

mx::array number(float value, const mx::array& like) {
  return mx::array(value, like.dtype());
}

// x [B, L, D], each token in place of the next one; array `index` of the state
// is the one before the first.
mx::array shifted(const mx::array& x,
                  const RecurrentState& state,
                  std::size_t index) {
  auto shift = [](auto inputs, const mx::array& before, bool) {
    const auto& own = inputs[0];
    const int tokens = own.shape(1);
    auto all = mx::concatenate({mx::astype(before, own.dtype()), own}, 1);
    auto parts = mx::split(all, mx::Shape{tokens}, 1);
    // Of its own, not a view that keeps the chunk.
    return kernels::Scanned{parts[0], mx::contiguous(parts[1])};
  };
  return state.carry(index, {x.shape(0), 1, x.shape(2)}, {x}, shift, x.dtype());
}

// x + difference * share.
mx::array blend(const mx::array& x,
                const mx::array& difference,
                const mx::array& share) {
  return mx::add(x, mx::multiply(difference, share));
}

mx::array unit_length(const mx::array& x) {
  auto length = mx::sqrt(mx::sum(mx::square(x), -1, /*keepdims=*/true));
  return mx::divide(x, mx::maximum(length, number(1e-7f, x)));
}

}  // namespace

CachePtr Rwkv7::make_cache() const { return make_arrays_cache(3); }

std::vector<kernels::Linear*> Rwkv7::linears() {
  auto& p = parts_;
  std::vector<kernels::Linear*> all{
      &p.r, &p.k, &p.v, &p.out, &p.key, &p.channel_out};
  for (auto* mlp : {&p.decay, &p.rate, &p.gate}) {
    all.push_back(&mlp->down);
    all.push_back(&mlp->up);
  }
  if (p.value) {
    all.push_back(&p.value->down);
    all.push_back(&p.value->up);
  }
  return all;
}

// [B, L, D] -> [B, L, H, Dh].
mx::array Rwkv7::in_heads(const mx::array& x) const {
  return mx::reshape(
      x, {x.shape(0), x.shape(1), parts_.num_heads, parts_.head_size});
}

// The layer's values [B, L, H, Dh] with some of the first layer's.
mx::array Rwkv7::mix_values(const mx::array& values,
                            const mx::array& input,
                            std::optional<mx::array>& first_values) const {
  const auto& p = parts_;
  if (!p.value) {
    first_values = values;
    return values;
  }
  auto share = in_heads(
      mx::sigmoid(project(project(input, p.value->down), p.value->up)));
  return blend(values, mx::subtract(*first_values, values), share);
}

mx::array Rwkv7::mix_time(const mx::array& x,
                          const RecurrentState& state,
                          std::optional<mx::array>& first_values) const {
  const auto& p = parts_;
  const auto& table = kernels::table();
  auto difference = mx::subtract(shifted(x, state, 0), x);
  auto mixed = [&](const mx::array& share) {
    return blend(x, difference, share);
  };
  auto low_rank = [&](const mx::array& input, const LowRankMlp& mlp, auto&& f) {
    return project(f(project(input, mlp.down)), mlp.up);
  };
  auto same = [](const mx::array& y) { return y; };
  auto value_input = mixed(p.mix_v);

  auto r = in_heads(project(mixed(p.mix_r), p.r));
  auto k = in_heads(project(mixed(p.mix_k), p.k));
  auto v = mix_values(
      in_heads(project(value_input, p.v)), value_input, first_values);
  auto rate = in_heads(mx::sigmoid(low_rank(mixed(p.mix_a), p.rate, same)));
  auto gate = low_rank(mixed(p.mix_g), p.gate, [](const mx::array& y) {
    return mx::sigmoid(y);
  });
  auto decay = in_heads(low_rank(
      mixed(p.mix_w), p.decay, [](const mx::array& y) { return mx::tanh(y); }));
  decay = mx::exp(mx::multiply(mx::array(-0.606531f),
                               mx::sigmoid(mx::astype(decay, mx::float32))));

  auto removed = unit_length(mx::multiply(k, p.removal_scale));
  auto one = number(1.0f, k);
  k = mx::multiply(
      k, mx::add(one, mx::multiply(mx::subtract(rate, one), p.k_scale)));
  auto y =
      state.scan(1,
                 kernels::MatrixScan{.q = r,
                                     .k = k,
                                     .v = v,
                                     .decay = decay,
                                     .erase = mx::negative(removed),
                                     .write = mx::multiply(removed, rate)});

  y = table.norm(y, {.kind = kernels::NormKind::layer, .eps = kHeadNormEps});
  y = mx::add(mx::multiply(y, p.head_norm_weight), p.head_norm_bias);
  auto bonus =
      mx::sum(mx::multiply(mx::multiply(r, k), p.bonus), -1, /*keepdims=*/true);
  y = mx::add(y, mx::multiply(bonus, v));
  return mx::multiply(mx::reshape(y, x.shape()), gate);
}

// The hidden numbers of channel mixing, [B, L, F].
mx::array Rwkv7::mix_channels(const mx::array& x,
                              const RecurrentState& state) const {
  auto difference = mx::subtract(shifted(x, state, 2), x);
  return kernels::activate(
      project(blend(x, difference, parts_.mix_channel), parts_.key),
      kernels::Activation::relu_squared);
}

mx::array Rwkv7::operator()(const MixerInput& input, const Residual&) const {
  const auto& p = parts_;
  const auto& table = kernels::table();
  const RecurrentState state(input.cache);
  auto x = p.pre_norm ? table.norm(input.x, *p.pre_norm) : input.x;
  auto h = finish(mix_time(table.norm(x, p.time_norm), state, *input.shared),
                  p.out,
                  {.stream = &x});
  return finish(mix_channels(table.norm(h, p.channel_norm), state),
                p.channel_out,
                {.stream = &h});
}

}  // namespace mlxlm::nn
