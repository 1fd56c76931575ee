#define MLXLM_ISA avx512vnni
#define MLXLM_ISA_NAME "avx512vnni"
#include "kernels/cpu/isa-inl.h"

namespace mlxlm::kernels::cpu {

const IsaKernels* avx512vnni_kernels() {
#if defined(__AVX512VNNI__)
  static const bool kUsable =
      avx512_kernels() != nullptr && __builtin_cpu_supports("avx512vnni");
  return kUsable ? &avx512vnni::kKernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace mlxlm::kernels::cpu
