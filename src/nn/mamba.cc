#include "nn/mamba.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {
namespace {

mx::array norm_if(const mx::array& x,
                  const std::optional<kernels::Norm>& norm) {
  return norm ? kernels::table().norm(x, *norm) : x;
}

}  // namespace

CachePtr Mamba::make_cache() const { return make_arrays_cache(2); }

mx::array Mamba::operator()(const MixerInput& input,
                            const Residual& residual) const {
  const auto& p = parts_;
  auto halves = mx::split(project(input, p.in), 2, -1);
  const RecurrentState state(input.cache);
  auto mixed = state.convolve(0, halves[0], p.conv);

  auto parts = mx::split(project(mixed, p.x),
                         mx::Shape{p.step_rank, p.step_rank + p.state_size},
                         -1);
  auto step = project(norm_if(parts[0], p.step_norm), p.step);
  auto y =
      state.scan(1,
                 kernels::SelectiveScan{
                     .x = mixed,
                     .step = mx::logaddexp(step, mx::array(0.0f, step.dtype())),
                     .a = p.a,
                     .b = norm_if(parts[1], p.b_norm),
                     .c = norm_if(parts[2], p.c_norm),
                     .skip = p.skip});
  auto gate = mx::multiply(halves[1], mx::sigmoid(halves[1]));
  return finish(mx::multiply(gate, y), p.out, residual);
}

}  // namespace mlxlm::nn
