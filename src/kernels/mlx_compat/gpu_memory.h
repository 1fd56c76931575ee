// Arrays' memory, for kernels that MLX doesn't tell of it.
#pragma once

#include <cstdint>
#include <vector>

#include <mlx/array.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

// Where an array lies on an NVIDIA GPU, if it has been evaluated or its
// evaluation was begun. MLX may move it when the CPU reads it: the address
// holds for the next submission.
std::uint64_t gpu_address(const mx::array& array);

// The values of an int32 array. With MLX's CUDA build they are copied by the
// GPU: pages that it shares with the CPU would move when the CPU reads them,
// with all that lies beside them, and kernels wait for them to come back.
std::vector<int> integers_of(mx::array array);

// An array without content that others live at least as long as: one input of a
// node in place of thousands.
mx::array holder_of(std::vector<mx::array> arrays);

}  // namespace mlxlm::kernels
