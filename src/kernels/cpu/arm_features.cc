#include "kernels/cpu/arm_features.h"

#if defined(__APPLE__)
#include <cstddef>

#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace mlxlm::kernels::cpu {

#if defined(__APPLE__)

static bool has(const char* name) {
  int value = 0;
  std::size_t size = sizeof(value);
  return ::sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_arm_dot_products() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_arm_int8_matmul() { return has("hw.optional.arm.FEAT_I8MM"); }

#elif defined(__aarch64__) && defined(__linux__)

bool has_arm_dot_products() {
  return (::getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}
bool has_arm_int8_matmul() {
  return has_arm_dot_products() && (::getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
}

#else

bool has_arm_dot_products() { return false; }
bool has_arm_int8_matmul() { return false; }

#endif

}  // namespace mlxlm::kernels::cpu
