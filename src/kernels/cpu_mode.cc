#include <atomic>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include <mlxlm/error.h>

#include "kernels/seam.h"

namespace mlxlm::kernels {
namespace {

constexpr CpuMode kDefault = CpuMode::fast;

CpuMode mode_of_environment() {
  const char* text = std::getenv("MLX_LM_CPU_MODE");
  const std::string name = text != nullptr ? text : "";
  if (name.empty()) return kDefault;
  if (auto mode = cpu_mode_named(name)) return *mode;
  throw Error(ErrorKind::argument,
              "MLX_LM_CPU_MODE=" + name + ": it can be exact, fast or fastest");
}

std::atomic<CpuMode>& mode() {
  static std::atomic<CpuMode> current{mode_of_environment()};
  return current;
}

}  // namespace

std::optional<CpuMode> cpu_mode_named(std::string_view name) {
  if (name == "exact") return CpuMode::exact;
  if (name == "fast") return CpuMode::fast;
  if (name == "fastest") return CpuMode::fastest;
  return std::nullopt;
}

CpuMode cpu_mode() { return mode().load(); }

void set_cpu_mode(CpuMode new_mode) { mode().store(new_mode); }

}  // namespace mlxlm::kernels
