// Gear's mixer of near tokens: sigmoid(q * conv(k)) * conv(v), head by head.
// Method: ConvKVGatedMixer of mlx_lm/models/gear.py.
#pragma once

#include "nn/mixer.h"

namespace mlxlm::nn {

struct GatedConvWeights {
  kernels::Linear q;             // [H * Dh, D]
  kernels::Linear k, v;          // [Hkv * Dh, D]
  kernels::Norm q_norm, k_norm;  // [Dh]
  kernels::CausalConv k_conv, v_conv;
  kernels::Linear o;  // [D, H * Dh]
  int num_heads = 0;
  int num_kv_heads = 0;
};

class GatedConv : public Mixer {
 public:
  explicit GatedConv(GatedConvWeights weights) : w_(std::move(weights)) {}

  // State: the newest tokens' keys, normalized, and values.
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override {
    return {&w_.q, &w_.k, &w_.v, &w_.o};
  }

 private:
  GatedConvWeights w_;
};

}  // namespace mlxlm::nn
