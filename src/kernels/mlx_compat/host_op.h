// An MLX graph node that runs a C++ function on the CPU. The only folder that
// uses MLX headers beside mlx/*.h, which change between versions of MLX.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include <mlx/array.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

struct HostOutput {
  mx::Shape shape;
  mx::Dtype dtype;
  // The input whose buffer this output takes over, with its content, if it is
  // row-contiguous (else its content is copied); -1: none. For callers who know
  // that nobody reads what the function changes.
  int takes_over = -1;
};

// Called on MLX's stream thread when the inputs have values; fills the
// outputs, which are row-contiguous. Must not throw.
using HostFunction = std::function<void(std::span<const mx::array> inputs,
                                        std::span<mx::array> outputs)>;

// Lazy: `function` runs when an output is evaluated. `name` is for printing and
// must outlive the arrays.
std::vector<mx::array> host_op(const char* name,
                               std::vector<HostOutput> outputs,
                               std::vector<mx::array> inputs,
                               HostFunction function);

// How long such functions have run since the program began.
double host_op_seconds();

}  // namespace mlxlm::kernels
