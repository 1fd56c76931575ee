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

// While one lives, there is a GPU of these limits: kernels are compiled for it,
// but not run, and their results are zeros. For tests on other machines.
class Rehearsal {
 public:
  explicit Rehearsal(const DeviceLimits& limits);
  ~Rehearsal();
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

  static bool under_way();
};

}  // namespace mlxlm::kernels::cuda
