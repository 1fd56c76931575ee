// Attention whose keys and values are mixed with those of the token before
// (Baichuan-M1). Method: mlx_lm/models/baichuan_m1.py.
#pragma once

#include <vector>

#include "nn/mixer.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {

struct ConvAttentionParts {
  int num_heads = 0;
  int num_kv_heads = 0;
  kernels::Linear q, k, v, out;
  kernels::CausalConv k_conv, v_conv;  // of two taps, [Hkv * Dh, 2]
  const Rope* rope = nullptr;
  AttendSpec spec;
};

class ConvAttention : public Mixer {
 public:
  explicit ConvAttention(ConvAttentionParts parts) : parts_(std::move(parts)) {}

  // State: a CacheList of an ArraysCache with the newest token's keys and
  // values before they are mixed, [B, Hkv, 1, Dh] each, and the mixed ones'.
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override {
    return {&parts_.q, &parts_.k, &parts_.v, &parts_.out};
  }

 private:
  mx::array mix(const mx::array& x,
                const kernels::CausalConv& conv,
                const RecurrentState& state,
                std::size_t index) const;

  ConvAttentionParts parts_;
};

}  // namespace mlxlm::nn
