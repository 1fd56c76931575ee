#define MLXLM_ISA portable
#define MLXLM_ISA_NAME "portable"
#include "kernels/cpu/isa-inl.h"

namespace mlxlm::kernels::cpu {

const IsaKernels* portable_kernels() { return &portable::kKernels; }

}  // namespace mlxlm::kernels::cpu
