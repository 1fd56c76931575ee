#include <atomic>
#include <cstdlib>
#include <string>

#include <mlxlm/error.h>

#include "kernels/seam.h"

namespace mlxlm::kernels {
namespace {

constexpr CpuMode kDefault = CpuMode::fast;

CpuMode mode_of_environment() {
  const char* text = std::getenv("MLX_LM_CPU_MODE");
  const std::string name = text != nullptr ? text : "";
  if (name.empty()) return kDefault;
  if (name == "exact") return CpuMode::exact;
  if (name == "fast") return CpuMode::fast;
  throw Error(ErrorKind::argument,
              "MLX_LM_CPU_MODE=" + name + ": it can be exact or fast");
}

std::atomic<CpuMode>& mode() {
  static std::atomic<CpuMode> current{mode_of_environment()};
  return current;
}

}  // namespace

CpuMode cpu_mode() { return mode().load(); }

void set_cpu_mode(CpuMode new_mode) { mode().store(new_mode); }

}  // namespace mlxlm::kernels
