#include "kernels/mlx_compat/gpu_memory.h"

#include <memory>
#include <utility>

#include <mlx/allocator.h>

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

mx::array holder_of(std::vector<mx::array> arrays) {
  auto held = std::make_shared<std::vector<mx::array>>(std::move(arrays));
  mx::allocator::Data nothing(
      mx::allocator::Buffer(nullptr),
      [held = std::move(held)](mx::allocator::Buffer) mutable {
        held.reset();
      });
  return mx::array(std::move(nothing), {0}, mx::uint8);
}

}  // namespace mlxlm::kernels
