#include "kernels/mlx_compat/gpu_memory.h"

#include <algorithm>
#include <memory>
#include <utility>

#include <dlfcn.h>
#include <mlx/allocator.h>
#include <mlx/backend/cuda/cuda.h>
#include <mlx/mlx.h>

namespace mlxlm::kernels {
namespace {

// How MLX's CUDA allocator describes a buffer (its header needs CUDA's).
struct CudaBuffer {
  void* data;
  std::size_t size;
  int device;  // -1: pages that the CPU shares
};

// False where the driver can't: no GPU, or none that this thread uses.
bool copy_from_gpu(void* to, std::uint64_t from, std::size_t bytes) {
  using Copy = int (*)(void* to, std::uint64_t from, std::size_t bytes);
  static const auto kCopy = [] {
    // MLX has loaded the driver; its headers are not part of a build.
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    return driver == nullptr
               ? nullptr
               : reinterpret_cast<Copy>(dlsym(driver, "cuMemcpyDtoH_v2"));
  }();
  return kCopy != nullptr && kCopy(to, from, bytes) == 0;
}

}  // namespace

std::vector<int> integers_of(mx::array array) {
  array.eval();
  if (!array.flags().row_contiguous) {
    array = mx::contiguous(array);
    array.eval();
  }
  std::vector<int> values(array.size());
  const bool on_gpu =
      mx::cu::is_available() && array.size() > 0 &&
      static_cast<const CudaBuffer*>(array.buffer().ptr())->device >= 0;
  if (!on_gpu ||
      !copy_from_gpu(
          values.data(), gpu_address(array), values.size() * sizeof(int))) {
    std::copy_n(array.data<int>(), values.size(), values.begin());
  }
  return values;
}

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
