#include <cstdlib>
#include <string>

#include <mlxlm/error.h>

#include "kernels/seam.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace {

struct Implementation {
  const Table& (*table)();
  bool (*usable)();  // on this machine and the default device
};

// Fastest first; the reference runs everywhere.
constexpr Implementation kImplementations[] = {
    {cpu_table, cpu_table_usable},
    {cuda_table, cuda_table_usable},
    {reference_table, [] { return true; }},
};

const Table& chosen_table() {
  const char* name = std::getenv("MLX_LM_KERNELS");
  if (name != nullptr && *name != '\0') {
    if (const Table* found = find_table(name)) return *found;
    std::string message = "MLX_LM_KERNELS=" + std::string(name) +
                          ": no such implementation here; there are:";
    for (const auto& each : kImplementations) {
      if (each.usable()) message += " " + each.table().name;
    }
    throw Error(ErrorKind::argument, message);
  }
  for (const auto& each : kImplementations) {
    if (each.usable()) return each.table();
  }
  return reference_table();
}

}  // namespace

const Table& table() {
  static const Table& chosen = chosen_table();
  return chosen;
}

const Table* find_table(std::string_view name) {
  for (const auto& each : kImplementations) {
    if (each.usable() && each.table().name == name) return &each.table();
  }
  return nullptr;
}

bool keeps_halves() {
  return &table() == &cpu_table() && cpu_mode() != CpuMode::exact;
}

std::unique_ptr<Step> make_step(const StepSpec& spec) {
  if (&table() == &cuda_table()) return make_cuda_step(spec);
  if (&table() == &cpu_table() && !spec.ranks) return make_cpu_step(spec);
  return nullptr;
}

}  // namespace mlxlm::kernels
