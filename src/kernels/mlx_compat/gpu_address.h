// Where an array lies on an NVIDIA GPU.
#pragma once

#include <cstdint>

#include <mlx/array.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

// Of an array that has been evaluated, or whose evaluation was begun. MLX may
// move it when the CPU reads it: the address holds for the next submission.
std::uint64_t gpu_address(const mx::array& array);

}  // namespace mlxlm::kernels
