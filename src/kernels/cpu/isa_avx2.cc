#define MLXLM_ISA avx2
#define MLXLM_ISA_NAME "avx2"
#include "kernels/cpu/isa-inl.h"

namespace mlxlm::kernels::cpu {

const IsaKernels* avx2_kernels() {
#if defined(__AVX2__)
  static const bool kUsable = __builtin_cpu_supports("avx2") &&
                              __builtin_cpu_supports("fma") &&
                              __builtin_cpu_supports("f16c");
  return kUsable ? &avx2::kKernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace mlxlm::kernels::cpu
