// The arrays that a recurrent layer carries from chunk to chunk.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/seam.h"

namespace mlxlm {
class ArraysCache;
}

namespace mlxlm::nn {

namespace mx = mlx::core;

// A view of an ArraysCache, or of a batch's, one for each row, to whose tokens
// it belongs. Without a cache, layers start from nothing and forget. Throws
// Error{argument} if the cache is of another kind.
class RecurrentState {
 public:
  explicit RecurrentState(Cache* cache);

  // What goes on from the state `before`, which is zeros and `fresh` where
  // nothing has been read yet, over some tokens of the inputs.
  using Carry = std::function<kernels::Scanned(
      std::span<const mx::array> inputs, const mx::array& before, bool fresh)>;

  // Carries array `index` on, row by row of a batch. inputs [B, L, ...] ->
  // [B, L, ...]. Throws Error{argument} if what is held hasn't this shape.
  mx::array carry(std::size_t index,
                  const mx::Shape& shape,
                  const std::vector<mx::array>& inputs,
                  const Carry& carry,
                  mx::Dtype dtype = mx::float32) const;

  // The table's operations, with the state as array `index`.
  mx::array convolve(std::size_t index,
                     const mx::array& x,
                     const kernels::CausalConv& conv) const;
  // The state is held as [B, H, Dv, Dk], or `transposed`.
  mx::array scan(std::size_t index,
                 const kernels::MatrixScan& scan,
                 bool transposed = false) const;
  mx::array scan(std::size_t index, const kernels::SelectiveScan& scan) const;

 private:
  std::vector<ArraysCache*> rows_;  // none: no cache
  std::vector<int> num_tokens_;     // of each row; empty: all
};

}  // namespace mlxlm::nn
