#include "kernels/cpu/isa.h"

#include <cstdlib>
#include <string>

#include <mlxlm/error.h>

namespace mlxlm::kernels::cpu {
namespace {

const IsaKernels& choose() {
  const IsaKernels* all[] = {avx512vnni_kernels(),
                             avx512_kernels(),
                             avx2_kernels(),
                             portable_kernels()};
  const char* wanted = std::getenv("MLX_LM_CPU_ISA");
  std::string names;
  for (const IsaKernels* each : all) {
    if (each == nullptr) continue;
    if (wanted == nullptr || *wanted == '\0' ||
        each->name == std::string(wanted)) {
      return *each;
    }
    names += " ";
    names += each->name;
  }
  throw Error(ErrorKind::argument,
              std::string("MLX_LM_CPU_ISA=") + wanted +
                  ": this machine can't run it; it can run:" + names);
}

}  // namespace

const IsaKernels& isa_kernels() {
  static const IsaKernels& chosen = choose();
  return chosen;
}

}  // namespace mlxlm::kernels::cpu
