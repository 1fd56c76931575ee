// Copies into shared memory that threads don't wait for, and the barriers that
// say when they are done.
#pragma once

#include "common.cuh"

namespace mlxlm {

__device__ inline u32 shared_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}

// Shared memory's barriers for copies: `count` arrivals and the bytes expected.
__device__ inline void barrier_init(unsigned long long* barrier, int count) {
  asm volatile(
      "mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(count));
}
__device__ inline void barrier_arrive(unsigned long long* barrier) {
  asm volatile(
      "mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier))
      : "memory");
}
__device__ inline void barrier_wait(unsigned long long* barrier, u32 parity) {
  u32 done = 0;
  while (done == 0) {
    // Since Hopper threads can sleep meanwhile.
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
#if __CUDA_ARCH__ >= 900
        "mbarrier.try_wait.parity.shared.b64 done, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// On GPUs of the Hopper generation and later: arrives, and expects so many
// bytes of bulk copies.
__device__ inline void barrier_expect(unsigned long long* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Likewise: copies what lies in one piece; the barrier counts its bytes.
__device__ inline void copy_bulk(void* to,
                                 const void* from,
                                 int bytes,
                                 unsigned long long* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
      "l"(from),
      "r"(bytes),
      "r"(shared_address(barrier))
      : "memory");
}

// Copies 4, 8 or 16 bytes. (With a hint that the memory isn't read again
// CUDA 13.0's assembler makes illegal instructions.)
template <int BYTES = 16>
__device__ void copy_in(void* to, const void* from) {
  if constexpr (BYTES == 16) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
        "l"(from)
        : "memory");
  } else {
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)),
        "l"(from),
        "n"(BYTES)
        : "memory");
  }
}
__device__ inline void copies_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most COUNT groups of this thread's copies are under way.
template <int COUNT>
__device__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory");
}

}  // namespace mlxlm
