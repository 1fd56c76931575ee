// The implementations behind the seam, for table.cc alone. A new one adds its
// declaration here and a line to the list there.
#pragma once

#include <memory>

#include "kernels/seam.h"
#include "kernels/step.h"

namespace mlxlm::kernels {

const Table& reference_table();

const Table& cpu_table();
bool cpu_table_usable();
// Null where a layer has adapters or a window.
std::unique_ptr<Step> make_cpu_step(const StepSpec& spec);

const Table& cuda_table();
bool cuda_table_usable();
// Null where the kernel doesn't do this decoder, or the GPU can't run it.
std::unique_ptr<Step> make_cuda_step(const StepSpec& spec);

}  // namespace mlxlm::kernels
