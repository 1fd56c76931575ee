// Gated delta networks, with one decay per head (Qwen3-Next, OLMo hybrid) or
// one per key (Kimi delta attention). Method: mlx_lm/models/gated_delta.py.
#pragma once

#include <optional>
#include <vector>

#include "nn/mixer.h"

namespace mlxlm::nn {

// Sizes as kernels::MatrixScan names them.
struct DeltaNetParts {
  int num_heads = 0;
  int num_key_heads = 0;
  int key_size = 0;
  int value_size = 0;
  // Queries, keys and values: one layer and convolution for all three, or each
  // has its own.
  std::vector<kernels::Linear> qkv;
  std::vector<kernels::CausalConv> convs;
  // One layer after the other: one, or two of low rank.
  std::vector<kernels::Linear> decay, gate;
  kernels::Linear beta;
  float beta_scale = 1.0f;  // 2: states may change their sign
  mx::array rate;           // exp(A_log): [H], or [H, 1] for a decay per key
  mx::array step_bias;      // [H], or [H, Dk]
  // Of the logarithm of the decay; none: the decay is exp(-rate * softplus).
  std::optional<float> lower_bound;
  kernels::Norm norm;         // [Dv]
  bool sigmoid_gate = false;  // else SiLU
  kernels::Linear out;
};

class DeltaNet : public Mixer {
 public:
  explicit DeltaNet(DeltaNetParts parts);

  // State: the newest inputs of each convolution, then S.
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override;

 private:
  std::vector<mx::array> convolve(std::vector<mx::array> inputs,
                                  Cache* cache) const;
  mx::array decay_of(const mx::array& step) const;

  DeltaNetParts parts_;
  kernels::Norm q_norm_, k_norm_;  // to unit length, q times 1 / sqrt(Dk)
};

}  // namespace mlxlm::nn
