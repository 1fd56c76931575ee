// The implementations behind the seam, for table.cc alone. A new one adds its
// declaration here and a line to the list there.
#pragma once

#include "kernels/seam.h"

namespace mlxlm::kernels {

const Table& reference_table();

const Table& cpu_table();
bool cpu_table_usable();

const Table& cuda_table();
bool cuda_table_usable();

}  // namespace mlxlm::kernels
