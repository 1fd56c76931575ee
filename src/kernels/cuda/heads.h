// Projections, norms and ropes of heads on NVIDIA GPUs.
#pragma once

#include <span>
#include <vector>

#include "kernels/seam.h"

namespace mlxlm::kernels::cuda {

// As in Table.
std::vector<mx::array> norm_heads(const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions);

}  // namespace mlxlm::kernels::cuda
