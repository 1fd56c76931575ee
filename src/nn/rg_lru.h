// Griffin's recurrent block: a real-gated linear recurrent unit behind a
// convolution, times a GELU branch. Method: mlx_lm/models/recurrent_gemma.py.
#pragma once

#include <vector>

#include "nn/mixer.h"

namespace mlxlm::nn {

struct RgLruParts {
  kernels::Linear y, x, out;
  kernels::CausalConv conv;
  // Per head: [H, Dh, Dh], and [H, Dh].
  mx::array input_gate, input_gate_bias;
  mx::array recurrent_gate, recurrent_gate_bias;
  mx::array rate;  // -8 * softplus(recurrent_param) [C]
};

class RgLru : public Mixer {
 public:
  explicit RgLru(RgLruParts parts) : parts_(std::move(parts)) {}

  // State: the newest inputs of the convolution, then h [B, C].
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override {
    return {&parts_.y, &parts_.x, &parts_.out};
  }

 private:
  RgLruParts parts_;
};

}  // namespace mlxlm::nn
