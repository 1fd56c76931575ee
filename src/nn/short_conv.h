// LFM2's short convolution: C * conv(B * x), all three projections of the
// layer's input.
#pragma once

#include "nn/mixer.h"

namespace mlxlm::nn {

class ShortConv : public Mixer {
 public:
  kernels::Linear in;  // [3 * D, D]
  kernels::CausalConv conv;
  kernels::Linear out;

  ShortConv(kernels::Linear in, kernels::CausalConv conv, kernels::Linear out)
      : in(std::move(in)), conv(std::move(conv)), out(std::move(out)) {}

  // State: the products B * x of the newest tokens.
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override { return {&in, &out}; }
};

}  // namespace mlxlm::nn
