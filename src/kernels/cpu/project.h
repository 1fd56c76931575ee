// Rows of activations through packed matrices, spread over the threads.
#pragma once

#include <span>

#include "kernels/cpu/isa.h"

namespace mlxlm::kernels::cpu {

// One product: y [num_rows, matrix.num_rows] = x W^T + bias.
struct Product {
  const PanelMatrix* matrix = nullptr;
  const float* bias = nullptr;  // null: none
  float* y = nullptr;
};

// All products of the same x [num_rows, num_columns], rows without gaps. Each
// weight is read once for up to a tile of rows. In fast mode x is rounded to
// integers where the weights are.
void project(const float* x,
             int num_rows,
             int num_columns,
             std::span<const Product> products);

// The products of a later call, of which only the matrices are known: threads
// that wait until then ask for what they read.
void project_later(std::span<const Product> products);

}  // namespace mlxlm::kernels::cpu
