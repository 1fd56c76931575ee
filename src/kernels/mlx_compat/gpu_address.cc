#include "kernels/mlx_compat/gpu_address.h"

namespace mlxlm::kernels {
namespace {

// How MLX's CUDA allocator describes a buffer (its header needs CUDA's).
struct CudaBuffer {
  void* data;
};

}  // namespace

std::uint64_t gpu_address(const mx::array& array) {
  const auto* buffer = static_cast<const CudaBuffer*>(array.buffer().ptr());
  return reinterpret_cast<std::uintptr_t>(buffer->data) +
         static_cast<std::uint64_t>(array.offset());
}

}  // namespace mlxlm::kernels
