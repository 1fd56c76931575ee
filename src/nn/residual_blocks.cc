#include "nn/residual_blocks.h"

#include <mlx/mlx.h>

namespace mlxlm::nn {

mx::array ResidualBlocks::mix(const mx::array& x,
                              const kernels::Norm& norm) const {
  if (blocks_.empty()) return x;
  auto all = blocks_;
  all.push_back(x);
  auto parts = mx::astype(mx::stack(std::move(all)), mx::float32);
  auto scores =
      mx::sum(kernels::table().norm(parts, norm), -1, /*keepdims=*/true);
  auto weights = mx::softmax(scores, 0, /*precise=*/true);
  return mx::astype(mx::sum(mx::multiply(parts, weights), 0), x.dtype());
}

}  // namespace mlxlm::nn
