// Kernels' text to the GPU's machine code, once for all processes.
#pragma once

#include <string>

namespace mlxlm::kernels::cuda {

// CUDA C++ as machine code for a GPU of this name, such as sm_90a. NVIDIA's
// run-time compiler makes it, which MLX's CUDA build brings along, and it is
// kept in the user's cache folder (mlx-lm/cuda). Throws Error{internal} with
// the compiler's messages, Error{unsupported} where there is no compiler.
std::string compile(const std::string& source, const std::string& architecture);

// Of the first GPU; empty where there is none.
std::string gpu_architecture();

}  // namespace mlxlm::kernels::cuda
