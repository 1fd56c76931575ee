#include "nn/short_conv.h"

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {

mx::array ShortConv::operator()(const MixerInput& input,
                                const Residual& residual) const {
  auto parts = mx::split(project(input, in), 3, -1);
  const RecurrentState state(input.cache);
  auto mixed = state.convolve(0, mx::multiply(parts[0], parts[2]), conv);
  return finish(mx::multiply(parts[1], mixed), out, residual);
}

CachePtr ShortConv::make_cache() const { return make_arrays_cache(1); }

}  // namespace mlxlm::nn
