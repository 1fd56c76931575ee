// Kernels' text to the GPU's machine code, once for all processes.
#pragma once

#include <string>

namespace mlxlm::kernels::cuda {

// CUDA C++ as machine code for a GPU of this name, such as sm_90a, or as PTX
// for its and later generations (compute_90), which the driver translates.
// NVIDIA's run-time compiler makes it, which MLX's CUDA build brings along, and
// it is kept in the user's cache folder (mlx-lm/cuda). Throws Error{internal}
// with the compiler's messages, Error{unsupported} where there is no compiler.
std::string compile(const std::string& source, const std::string& architecture);

// What to compile for the first GPU; PTX where it is newer than the compiler.
// Empty where there is none.
std::string gpu_architecture();

}  // namespace mlxlm::kernels::cuda
