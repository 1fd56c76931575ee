// What the kernels need to know of the GPU.
#pragma once

namespace mlxlm::kernels::cuda {

struct DeviceLimits {
  int compute_capability_major = 0;
  int compute_capability_minor = 0;
  int num_processors = 0;
  int shared_bytes_per_block = 0;
};

// Of the first GPU; all 0 where the driver doesn't say.
const DeviceLimits& device_limits();

}  // namespace mlxlm::kernels::cuda
