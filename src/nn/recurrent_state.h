// The arrays that a recurrent layer carries from chunk to chunk.
#pragma once

#include <mlxlm/cache.h>

#include "kernels/seam.h"

namespace mlxlm {
class ArraysCache;
}

namespace mlxlm::nn {

namespace mx = mlx::core;

// A view of an ArraysCache. Without a cache, layers start from nothing and
// forget. Throws Error{argument} if the cache is of another kind.
class RecurrentState {
 public:
  explicit RecurrentState(Cache* cache);

  // Nothing has been read yet.
  bool empty(std::size_t index) const;

  // Zeros of this shape where nothing has been read yet. Throws Error{argument}
  // if what is held has another shape.
  mx::array get(std::size_t index,
                const mx::Shape& shape,
                mx::Dtype dtype = mx::float32) const;
  void set(std::size_t index, mx::array value) const;

  // table().causal_conv with the newest inputs as array `index`.
  mx::array convolve(std::size_t index,
                     const mx::array& x,
                     const kernels::CausalConv& conv) const;

 private:
  ArraysCache* cache_;
};

}  // namespace mlxlm::nn
