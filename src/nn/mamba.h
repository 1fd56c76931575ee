// Mamba: a decay of its own for each channel and number of the state, and
// steps, keys and queries computed from the convolved input. Method:
// mlx_lm/models/mamba.py, jamba.py.
#pragma once

#include <optional>
#include <vector>

#include "nn/mixer.h"

namespace mlxlm::nn {

struct MambaParts {
  int inner_size = 0;  // C
  int state_size = 0;  // N
  int step_rank = 0;
  kernels::Linear in;  // x, then the gate
  kernels::CausalConv conv;
  kernels::Linear x;     // step (of low rank), B, C
  kernels::Linear step;  // [C, step_rank]
  std::optional<kernels::Norm> step_norm, b_norm, c_norm;
  mx::array a;     // -exp(A_log) [C, N]
  mx::array skip;  // D [C]
  kernels::Linear out;
};

class Mamba : public Mixer {
 public:
  explicit Mamba(MambaParts parts) : parts_(std::move(parts)) {}

  // State: the newest inputs of the convolution, then S [B, C, N].
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override {
    return {&parts_.in, &parts_.x, &parts_.step, &parts_.out};
  }

 private:
  MambaParts parts_;
};

}  // namespace mlxlm::nn
