#include "kernels/cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <mlxlm/error.h>

namespace mlxlm::kernels::cpu {
namespace {

// Those this machine can run, the best first.
const std::vector<const IsaKernels*>& usable() {
  static const auto all = [] {
    std::vector<const IsaKernels*> all{avx512vnni_kernels(),
                                       avx512_kernels(),
                                       avx2_kernels(),
                                       neon_i8mm_kernels(),
                                       neon_dot_kernels(),
                                       portable_kernels()};
    std::erase(all, nullptr);
    return all;
  }();
  return all;
}

const IsaKernels& choose() {
  const char* wanted = std::getenv("MLX_LM_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *usable().front();
  if (const IsaKernels* found = find_isa_kernels(wanted)) return *found;
  std::string names;
  for (const IsaKernels* each : usable()) {
    names += " ";
    names += each->name;
  }
  throw Error(ErrorKind::argument,
              std::string("MLX_LM_CPU_ISA=") + wanted +
                  ": this machine can't run it; it can run:" + names);
}

}  // namespace

const IsaKernels* find_isa_kernels(const char* name) {
  for (const IsaKernels* each : usable()) {
    if (std::strcmp(each->name, name) == 0) return each;
  }
  return nullptr;
}

const IsaKernels& isa_kernels() {
  static const IsaKernels& chosen = choose();
  return chosen;
}

}  // namespace mlxlm::kernels::cpu
