// Hopper's products of a warpgroup: d += a b with a in registers and b in
// shared memory, both multiplied while the threads go on.
#pragma once

#include "async.cuh"

namespace mlxlm {

// Where b lies: blocks of 8 rows of x by 16 bytes in one piece each, the two of
// a row side by side, then those of the next 8 rows. This is the low half of a
// descriptor, which counts in units of 16 bytes; the high half is the same for
// all.
__device__ inline u32 wgmma_matrix(const void* shared) {
  constexpr u32 kNextColumns = 128 / 16;
  return (shared_address(shared) & 0x3ffff) >> 4 | kNextColumns << 16;
}
constexpr u32 kWgmmaNextRows = 256 / 16;

// Before products that read registers written since.
__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most COUNT groups of products are under way.
template <int COUNT>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory");
}

// d [64, N] += a [64, 16] b [16, N]: of the first, lanes hold the rows lane / 4
// and lane / 4 + 8 of their warp's 16, as in mma.sync.
template <class T, int N>
struct Wgmma;

#define MLXLM_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MLXLM_F8(i) MLXLM_F4(i), MLXLM_F4(i + 4)
#define MLXLM_F16(i) MLXLM_F8(i), MLXLM_F8(i + 8)
#define MLXLM_F32(i) MLXLM_F16(i), MLXLM_F16(i + 16)
#define MLXLM_F64(i) MLXLM_F32(i), MLXLM_F32(i + 32)
#define MLXLM_D4 "%0, %1, %2, %3"
#define MLXLM_D8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MLXLM_D16                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
  "%15"
#define MLXLM_D32                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
  "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
  "%28, %29, %30, %31"
#define MLXLM_D64                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
  "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
  "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
  "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MLXLM_WGMMA(T, TYPE, N, SIZE, A, B, HIGH)                         \
  template <>                                                             \
  struct Wgmma<T, N> {                                                    \
    static __device__ void run(float* d, const u32 (&a)[4], u32 b) {      \
      asm volatile(                                                       \
          "{\n.reg .pred add;\n.reg .b64 b;\nsetp.eq.b32 add, 0, 0;\n"    \
          "mov.b64 b, {" B ", " HIGH                                      \
          "};\n"                                                          \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE \
          " {" MLXLM_D##SIZE "}, {" A "}, b, add, 1, 1, 0;\n}"            \
          : MLXLM_F##SIZE(0)                                              \
          : "r"(a[0]),                                                    \
            "r"(a[1]),                                                    \
            "r"(a[2]),                                                    \
            "r"(a[3]),                                                    \
            "r"(b),                                                       \
            "r"(kWgmmaNextRows));                                         \
    }                                                                     \
  }
#define MLXLM_WGMMAS(T, TYPE)                                       \
  MLXLM_WGMMA(T, TYPE, 8, 4, "%4, %5, %6, %7", "%8", "%9");         \
  MLXLM_WGMMA(T, TYPE, 16, 8, "%8, %9, %10, %11", "%12", "%13");    \
  MLXLM_WGMMA(T, TYPE, 32, 16, "%16, %17, %18, %19", "%20", "%21"); \
  MLXLM_WGMMA(T, TYPE, 64, 32, "%32, %33, %34, %35", "%36", "%37"); \
  MLXLM_WGMMA(T, TYPE, 128, 64, "%64, %65, %66, %67", "%68", "%69")

MLXLM_WGMMAS(BFloat16, "bf16");
MLXLM_WGMMAS(Half, "f16");

}  // namespace mlxlm
