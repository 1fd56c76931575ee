#include "kernels/cuda/cache_tables.h"

#include <utility>

#include <mlx/mlx.h>

#include "kernels/mlx_compat/gpu_memory.h"

namespace mlxlm::kernels::cuda {
namespace {

void submit(std::span<const StepRow> rows, std::span<const mx::array> after) {
  std::vector<mx::array> unscheduled;
  auto look_at = [&](const mx::array& array) {
    if (array.status() == mx::array::Status::unscheduled) {
      unscheduled.push_back(array);
    }
  };
  for (const auto& row : rows) {
    for (const auto& layer : row.layers) {
      look_at(layer.keys);
      look_at(layer.values);
    }
  }
  for (const auto& each : after) look_at(each);
  if (!unscheduled.empty()) mx::async_eval(std::move(unscheduled));
}

}  // namespace

mx::array CacheTables::of(std::span<const StepRow> rows,
                          std::span<const mx::array> after) {
  submit(rows, after);
  std::vector<std::uint64_t> found;
  found.reserve(rows.size() * (2 * rows[0].layers.size() + 1));
  for (const auto& row : rows) {
    for (const auto& layer : row.layers) {
      found.push_back(gpu_address(layer.keys));
      found.push_back(gpu_address(layer.values));
    }
    found.push_back(static_cast<std::uint64_t>(row.layers[0].keys.shape(2)));
  }
  if (!table_ || found != known_) {
    table_ = mx::array(found.data(),
                       {static_cast<int>(rows.size()),
                        static_cast<int>(found.size() / rows.size())},
                       mx::uint64);
    known_ = std::move(found);
  }
  return *table_;
}

}  // namespace mlxlm::kernels::cuda
