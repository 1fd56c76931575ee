// What is done with logits over a vocabulary, on NVIDIA GPUs.
#pragma once

#include <mlx/array.h>

namespace mlxlm::kernels::cuda {

// As in Table.
mlx::core::array log_softmax(const mlx::core::array& logits);
mlx::core::array argmax(const mlx::core::array& x);

}  // namespace mlxlm::kernels::cuda
