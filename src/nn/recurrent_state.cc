#include "nn/recurrent_state.h"

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/arrays_cache.h"
#include "load/faults.h"

namespace mlxlm::nn {

RecurrentState::RecurrentState(Cache* cache)
    : cache_(dynamic_cast<ArraysCache*>(cache)) {
  if (cache != nullptr && cache_ == nullptr) {
    throw Error(ErrorKind::argument,
                "a recurrent layer needs an ArraysCache, not a " +
                    std::string(cache->kind()));
  }
}

bool RecurrentState::empty(std::size_t index) const {
  return cache_ == nullptr || index >= cache_->count() || !(*cache_)[index];
}

mx::array RecurrentState::get(std::size_t index,
                              const mx::Shape& shape,
                              mx::Dtype dtype) const {
  if (empty(index)) return mx::zeros(shape, dtype);
  const auto& value = *(*cache_)[index];
  if (value.shape() != shape) {
    throw Error(
        ErrorKind::argument,
        "array " + std::to_string(index) + " of a recurrent layer's cache is " +
            to_text(value.shape()) + ", but the model needs " + to_text(shape));
  }
  return value;
}

void RecurrentState::set(std::size_t index, mx::array value) const {
  if (cache_ == nullptr) return;
  if (index >= cache_->count()) {
    throw Error(ErrorKind::argument,
                "a recurrent layer's cache has " +
                    std::to_string(cache_->count()) +
                    " arrays, fewer than the model needs");
  }
  cache_->set(index, std::move(value));
}

mx::array RecurrentState::convolve(std::size_t index,
                                   const mx::array& x,
                                   const kernels::CausalConv& conv) const {
  const int held = conv.num_taps() - 1;
  auto state = get(index, {x.shape(0), held, x.shape(2)}, x.dtype());
  auto [y, after] = kernels::table().causal_conv(x, conv, state);
  set(index, mx::astype(after, x.dtype()));
  return y;
}

}  // namespace mlxlm::nn
