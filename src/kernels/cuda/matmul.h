// Products with quantized weights on NVIDIA GPUs.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/seam.h"

namespace mlxlm::kernels::cuda {

// K of a quantized matrix [N, K].
int columns_of(const Linear& linear);

// Whether all kernels can multiply x [B, L, K] with this matrix.
bool suits_kernels(const mx::array& x, const Linear& linear);

// Adds the inputs of matrix i to a call, and the text of its QuantizedMatrix.
void add_matrix(Launch& call, const Linear& linear, mx::Dtype dtype, int i);
std::string text_of_matrix(const Linear& linear, int i);

// The text of a function of a float.
const char* function_of(Activation activation);

// Whether that for few rows can, which takes small floats, too.
bool suits_few_rows(const mx::array& x, const Linear& linear);

// x W^T + b for up to three matrices that suit, x normalized first where a norm
// (root mean square, with a weight) is given; the first one's product times
// scale plus the residual where that is given.
std::vector<mx::array> few_rows_linear(const mx::array& x,
                                       const Norm* norm,
                                       std::span<const Linear* const> linears,
                                       const mx::array* residual,
                                       float scale);

// activation(n(x) Wg^T) * (n(x) Wu^T), of matrices of one shape and format.
mx::array few_rows_gated(const mx::array& x,
                         const Norm* norm,
                         const Linear& gate,
                         const Linear& up,
                         Activation activation);

}  // namespace mlxlm::kernels::cuda
