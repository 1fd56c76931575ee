#include "kernels/cpu/weight_memory.h"

#include <algorithm>
#include <cstdint>
#include <mutex>

#include <mlx/allocator.h>
#include <mlx/memory.h>
#include <sys/mman.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace mlxlm::kernels::cpu {
namespace {

constexpr std::size_t kAlignment = 64;  // a cache line

// Blocks grow, so that small models take little and large ones have few.
constexpr std::size_t kFirstBlockBytes = std::size_t{256} << 10;
constexpr std::size_t kLargestBlockBytes = std::size_t{32} << 20;

constexpr std::size_t kBytesPerReturn = std::size_t{8} << 20;

std::uintptr_t rounded_up(std::uintptr_t value, std::size_t to) {
  return (value + to - 1) / to * to;
}

// Large pages where the system has them: only a hint, whatever it answers.
void ask_for_large_pages(std::byte* begin, std::size_t size) {
#if defined(MADV_HUGEPAGE)
  constexpr std::size_t kPageBytes = 4096;
  const auto from =
      rounded_up(reinterpret_cast<std::uintptr_t>(begin), kPageBytes);
  const auto to = (reinterpret_cast<std::uintptr_t>(begin) + size) /
                  kPageBytes * kPageBytes;
  if (from < to) {
    ::madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
  }
#else
  (void)begin;
  (void)size;
#endif
}

// What was packed before has been freed, to MLX's cache or between arrays still
// in use: it stays this process's until the allocators are told.
void return_freed_memory() {
  mlx::core::clear_cache();
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

}  // namespace

struct WeightMemory::Block {
  explicit Block(std::size_t size_bytes)
      : memory(mlx::core::allocator::malloc(size_bytes)), size(size_bytes) {
    ask_for_large_pages(begin(), size);
  }

  std::byte* begin() {
    return static_cast<std::byte*>(memory.buffer().raw_ptr());
  }

  // Null where there is no room left.
  std::byte* take(std::size_t size_bytes) {
    const auto start = reinterpret_cast<std::uintptr_t>(begin());
    const std::size_t at = rounded_up(start + used, kAlignment) - start;
    if (at > size || size_bytes > size - at) return nullptr;
    used = at + size_bytes;
    return begin() + at;
  }

  mlx::core::allocator::Data memory;
  std::size_t size;
  std::size_t used = 0;
};

WeightMemory::WeightMemory(std::size_t size_bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Block> last;  // goes with the last of its pieces
  static std::size_t handed_out_bytes = 0;
  std::lock_guard lock(mutex);
  handed_out_bytes += size_bytes;
  if (handed_out_bytes >= kBytesPerReturn) {
    handed_out_bytes = 0;
    return_freed_memory();
  }
  block_ = last.lock();
  if (block_) data_ = block_->take(size_bytes);
  if (data_ != nullptr) return;
  const std::size_t next = block_
                               ? std::min(2 * block_->size, kLargestBlockBytes)
                               : kFirstBlockBytes;
  block_ = std::make_shared<Block>(std::max(next, size_bytes + kAlignment));
  data_ = block_->take(size_bytes);
  last = block_;
}

}  // namespace mlxlm::kernels::cpu
