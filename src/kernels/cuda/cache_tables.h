// Where rows' keys and values lie, as a step kernel reads it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <mlx/array.h>

#include "kernels/step.h"

namespace mlxlm::kernels::cuda {

class CacheTables {
 public:
  // uint64 [rows, 2 layers + 1]: addresses of keys and values of each layer,
  // and how many tokens they have room for. Submits what buffers are made of,
  // and `after`, so that a later submission finds them as they should be.
  mx::array of(std::span<const StepRow> rows, std::span<const mx::array> after);

 private:
  std::vector<std::uint64_t> known_;  // what the table has
  std::optional<mx::array> table_;
};

}  // namespace mlxlm::kernels::cuda
