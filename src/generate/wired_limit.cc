// WiredLimit: on Metal, memory up to the limit stays resident.
#include <variant>

#include <mlx/mlx.h>

#include <mlxlm/generate.h>

#include "core/log.h"
#include "generate/memory_estimate.h"

namespace mlxlm {
namespace {

std::optional<std::size_t> recommended_bytes() {
  const auto& info = mx::device_info();
  auto found = info.find("max_recommended_working_set_size");
  if (found == info.end()) {
    return std::nullopt;
  }
  auto* bytes = std::get_if<std::size_t>(&found->second);
  return bytes == nullptr ? std::nullopt : std::optional(*bytes);
}

}  // namespace

WiredLimit::WiredLimit(const Model& model) {
  auto limit = recommended_bytes();
  if (!limit) {
    return;
  }
  const std::uint64_t model_bytes = weight_bytes(model);
  if (model_bytes > *limit / 10 * 9) {
    log_warning("the model needs " + std::to_string(model_bytes >> 20) +
                " MiB, close to the " + std::to_string(*limit >> 20) +
                " MiB that the device recommends at most; generation can be "
                "slow");
  }
  previous_bytes_ = mx::set_wired_limit(*limit);
}

WiredLimit::~WiredLimit() {
  if (previous_bytes_) {
    // The limit must not change under work that is still running.
    mx::synchronize();
    mx::set_wired_limit(*previous_bytes_);
  }
}

}  // namespace mlxlm
