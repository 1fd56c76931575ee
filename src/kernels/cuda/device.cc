#include "kernels/cuda/device.h"

#include <optional>

#include <dlfcn.h>

namespace mlxlm::kernels::cuda {
namespace {

// CUdevice_attribute's numbers.
constexpr int kMultiprocessorCount = 16;
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kMaxSharedMemoryPerBlockOptin = 97;

DeviceLimits read_limits() {
  // MLX has loaded the driver; its headers are not part of a build.
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return {};
  using GetAttribute = int (*)(int* value, int attribute, int device);
  const auto get =
      reinterpret_cast<GetAttribute>(dlsym(driver, "cuDeviceGetAttribute"));
  if (get == nullptr) return {};
  auto read = [&](int attribute) {
    int value = 0;
    return get(&value, attribute, 0) == 0 ? value : 0;
  };
  return {.compute_capability_major = read(kComputeCapabilityMajor),
          .compute_capability_minor = read(kComputeCapabilityMinor),
          .num_processors = read(kMultiprocessorCount),
          .shared_bytes_per_block = read(kMaxSharedMemoryPerBlockOptin)};
}

std::optional<DeviceLimits>& rehearsed() {
  static std::optional<DeviceLimits> limits;
  return limits;
}

}  // namespace

const DeviceLimits& device_limits() {
  if (rehearsed()) return *rehearsed();
  static const DeviceLimits kLimits = read_limits();
  return kLimits;
}

Rehearsal::Rehearsal(const DeviceLimits& limits) { rehearsed() = limits; }

Rehearsal::~Rehearsal() { rehearsed().reset(); }

bool Rehearsal::under_way() { return rehearsed().has_value(); }

}  // namespace mlxlm::kernels::cuda
