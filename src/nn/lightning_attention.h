// Lightning attention: linear attention with a fixed decay per head. Method:
// mlx_lm/models/bailing_moe_linear.py.
#pragma once

#include <optional>
#include <vector>

#include "nn/mixer.h"

namespace mlxlm::nn {

struct LightningParts {
  int num_heads = 0;
  int head_size = 0;
  kernels::Linear q, k, v;
  std::optional<kernels::Norm> q_norm, k_norm;  // of each head
  const Rope* rope = nullptr;
  float scale = 1.0f;     // of queries
  mx::array decay;        // [H]
  kernels::Linear gate;   // whose sigmoid multiplies the normalized answers
  mx::array norm_weight;  // [H * Dh]
  int norm_groups = 1;    // of the answers, each normalized
  float norm_eps = 1e-5f;
  kernels::Linear out;
};

class LightningAttention : public Mixer {
 public:
  explicit LightningAttention(LightningParts parts)
      : parts_(std::move(parts)) {}

  // State: S [B, H, Dk, Dv].
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override {
    return {&parts_.q, &parts_.k, &parts_.v, &parts_.gate, &parts_.out};
  }

 private:
  LightningParts parts_;
};

// The decays of a layer: the slopes of ALiBi, which shrink from layer to layer.
mx::array lightning_decay(int num_heads, int layer, int num_layers);

}  // namespace mlxlm::nn
