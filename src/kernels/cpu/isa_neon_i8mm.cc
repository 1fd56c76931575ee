#include "kernels/cpu/arm_features.h"

#define MLXLM_ISA neon_i8mm
#define MLXLM_ISA_NAME "neon_i8mm"
#include "kernels/cpu/isa-inl.h"

namespace mlxlm::kernels::cpu {

const IsaKernels* neon_i8mm_kernels() {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  static const bool kUsable = has_arm_int8_matmul();
  return kUsable ? &neon_i8mm::kKernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace mlxlm::kernels::cpu
