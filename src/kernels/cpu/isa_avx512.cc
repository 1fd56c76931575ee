#define MLXLM_ISA avx512
#define MLXLM_ISA_NAME "avx512"
#include "kernels/cpu/isa-inl.h"

namespace mlxlm::kernels::cpu {

const IsaKernels* avx512_kernels() {
#if defined(__AVX512F__)
  static const bool kUsable =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return kUsable ? &avx512::kKernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace mlxlm::kernels::cpu
