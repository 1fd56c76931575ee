// Attention over depth: what a part of a layer reads is a mixture of the stream
// and of what earlier blocks of layers left, weighed by learnt scores. Method:
// mlx_lm/models/kimi_k3.py.
#pragma once

#include <vector>

#include "kernels/seam.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

class ResidualBlocks {
 public:
  // What a block leaves, [B, L, D].
  void append(const mx::array& x) { blocks_.push_back(x); }

  // The blocks and x, weighed by the softmax of what the numbers of norm(each)
  // add up to; x itself before the first block. x [B, L, D] -> [B, L, D].
  mx::array mix(const mx::array& x, const kernels::Norm& norm) const;

 private:
  std::vector<mx::array> blocks_;
};

}  // namespace mlxlm::nn
