#define MLXLM_ISA avx2
#define MLXLM_ISA_NAME "avx2"
#include "kernels/cpu/isa-inl.h"

namespace mlxlm::kernels::cpu {

const IsaKernels* avx2_kernels() {
#if defined(__AVX2__)
  // With AVX2 come the conversions of F16C, which clang 14 has no name for.
  static const bool kUsable =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return kUsable ? &avx2::kKernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace mlxlm::kernels::cpu
