// A linear layer in place of attention (nemotron-nas). It remembers nothing,
// but has an entry of the prompt cache, as in the reference.
#pragma once

#include "cache/kv_cache.h"
#include "nn/mixer.h"

namespace mlxlm::nn {

class LinearMixer : public Mixer {
 public:
  explicit LinearMixer(kernels::Linear linear) : linear_(std::move(linear)) {}

  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override {
    const auto x = input.norm != nullptr
                       ? kernels::table().norm(input.x, *input.norm)
                       : input.x;
    return finish(x, linear_, residual);
  }
  CachePtr make_cache() const override { return make_kv_cache(); }
  std::vector<kernels::Linear*> linears() override { return {&linear_}; }

 private:
  kernels::Linear linear_;
};

}  // namespace mlxlm::nn
