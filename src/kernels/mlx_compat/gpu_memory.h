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

// The values of an int32 array. Of an array in a GPU's own memory they are
// copied: MLX would move the array to pages that the CPU shares, where kernels
// that get its memory later wait for the pages to come back.
std::vector<int> integers_of(mx::array array);

// An array without content that others live at least as long as: one input of a
// node in place of thousands.
mx::array holder_of(std::vector<mx::array> arrays);

}  // namespace mlxlm::kernels
