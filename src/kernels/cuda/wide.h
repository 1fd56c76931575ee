// Products of many rows with quantized weights on Hopper GPUs.
#pragma once

#include <span>
#include <vector>

#include "kernels/seam.h"

namespace mlxlm::kernels::cuda {

// Whether the kernel for many rows can multiply x [B, L, K] with this matrix.
bool suits_many_rows(const mx::array& x, const Linear& linear);

// As few_rows_linear() and few_rows_gated().
std::vector<mx::array> many_rows_linear(const mx::array& x,
                                        const Norm* norm,
                                        std::span<const Linear* const> linears,
                                        const mx::array* residual,
                                        float scale);
mx::array many_rows_gated(const mx::array& x,
                          const Norm* norm,
                          const Linear& gate,
                          const Linear& up,
                          Activation activation);

// WideMatmul::kStages and kSlabs.
struct WideRings {
  int stages, slabs;
  WideRings(int bits, int row_tile)
      : stages(bits == 8 || row_tile <= 16 ? 2 : 3),
        slabs(row_tile > 16 ? 4 : 16) {}
};

}  // namespace mlxlm::kernels::cuda
