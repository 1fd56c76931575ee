#include "kernels/cpu/arm_features.h"

#define MLXLM_ISA neon_dot
#define MLXLM_ISA_NAME "neon_dot"
#include "kernels/cpu/isa-inl.h"

namespace mlxlm::kernels::cpu {

const IsaKernels* neon_dot_kernels() {
#if defined(__ARM_FEATURE_DOTPROD)
  static const bool kUsable = has_arm_dot_products();
  return kUsable ? &neon_dot::kKernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace mlxlm::kernels::cpu
