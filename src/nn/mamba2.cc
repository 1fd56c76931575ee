#include "nn/mamba2.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {

CachePtr Mamba2::make_cache() const { return make_arrays_cache(2); }

std::vector<kernels::Linear*> Mamba2::linears() {
  std::vector<kernels::Linear*> all{&parts_.in, &parts_.out};
  if (parts_.select) {
    for (auto* each :
         {&parts_.select->x, &parts_.select->bc_step, &parts_.select->step}) {
      all.push_back(each);
    }
  }
  return all;
}

// B, C and the step of what was convolved, each normalized.
std::array<mx::array, 3> Mamba2::selected(const mx::array& x) const {
  const auto& select = *parts_.select;
  const int size = parts_.state_size;
  const auto& table = kernels::table();
  auto parts =
      mx::split(project(x, select.bc_step), mx::Shape{size, 2 * size}, -1);
  return {table.norm(parts[0], select.b_norm),
          table.norm(parts[1], select.c_norm),
          project(table.norm(parts[2], select.step_norm), select.step)};
}

// x [B, T, H * Dh], keys and queries [B, T, G * N], step [B, T, H] -> as x.
mx::array Mamba2::scan(const mx::array& inner,
                       const mx::array& keys,
                       const mx::array& queries,
                       const mx::array& step,
                       const RecurrentState& state) const {
  const auto& p = parts_;
  const int rows = inner.shape(0);
  const int tokens = inner.shape(1);
  auto in_groups = [&](const mx::array& a) {
    return mx::reshape(a, {rows, tokens, p.num_groups, p.state_size});
  };
  auto x = mx::reshape(inner, {rows, tokens, p.num_heads, p.head_size});
  auto dt = mx::logaddexp(mx::add(mx::astype(step, mx::float32), p.step_bias),
                          mx::array(0.0f));
  dt = mx::clip(dt, mx::array(p.min_step), mx::array(p.max_step));
  auto y =
      state.scan(1,
                 kernels::MatrixScan{
                     .q = in_groups(queries),
                     .k = in_groups(keys),
                     .v = mx::multiply(x, mx::expand_dims(dt, -1)),
                     .decay = mx::exp(mx::negative(mx::multiply(dt, p.rate)))});
  y = mx::add(y, mx::multiply(x, mx::expand_dims(p.skip, -1)));
  return mx::reshape(mx::astype(y, inner.dtype()), {rows, tokens, -1});
}

mx::array Mamba2::normalized(const mx::array& y) const {
  const auto& p = parts_;
  if (p.norm_groups == 1) return kernels::table().norm(y, *p.norm);
  auto shape = y.shape();
  shape.back() = p.norm_groups;
  shape.push_back(p.inner_size() / p.norm_groups);
  auto parts = kernels::table().norm(
      mx::reshape(y, shape), {.kind = p.norm->kind, .eps = p.norm->eps});
  return mx::multiply(mx::reshape(parts, y.shape()), *p.norm->weight);
}

mx::array Mamba2::gated(const mx::array& y, const mx::array& gate) const {
  const auto& p = parts_;
  auto silu = mx::multiply(gate, mx::sigmoid(gate));
  if (!p.norm) return mx::multiply(silu, y);
  return p.norm_before_gate ? mx::multiply(silu, normalized(y))
                            : normalized(mx::multiply(silu, y));
}

mx::array Mamba2::operator()(const MixerInput& input,
                             const Residual& residual) const {
  const auto& p = parts_;
  const RecurrentState state(input.cache);
  if (p.select) {
    const kernels::Linear* const linears[] = {&p.in, &p.select->x};
    auto made = project(input, linears);
    auto x = state.convolve(0, made[1], p.conv);
    auto [keys, queries, step] = selected(x);
    return finish(
        gated(scan(x, keys, queries, step, state), made[0]), p.out, residual);
  }
  auto parts =
      mx::split(project(input, p.in),
                mx::Shape{p.inner_size(), p.inner_size() + p.conv_size()},
                -1);
  auto mixed = state.convolve(0, parts[1], p.conv);
  const int keys = p.num_groups * p.state_size;
  auto xbc =
      mx::split(mixed, mx::Shape{p.inner_size(), p.inner_size() + keys}, -1);
  return finish(gated(scan(xbc[0], xbc[1], xbc[2], parts[2], state), parts[0]),
                p.out,
                residual);
}

}  // namespace mlxlm::nn
