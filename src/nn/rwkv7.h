// A whole layer of RWKV-7: time mixing, then channel mixing. Method:
// mlx_lm/models/rwkv7.py.
#pragma once

#include <optional>
#include <vector>

#include "nn/mixer.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {

// up(activation(down(x))), of low rank.
struct LowRankMlp {
  kernels::Linear down, up;
};

struct Rwkv7Parts {
  int num_heads = 0;
  int head_size = 0;
  std::optional<kernels::Norm> pre_norm;  // the first layer's, of its input
  kernels::Norm time_norm, channel_norm;
  // How much of the token before goes into each: [D].
  mx::array mix_r, mix_w, mix_k, mix_v, mix_a, mix_g, mix_channel;
  mx::array removal_scale, k_scale, bonus;  // k_k, k_a, r_k [H, Dh]
  kernels::Linear r, k, v, out;
  LowRankMlp decay, rate, gate;
  std::optional<LowRankMlp> value;             // not in the first layer
  mx::array head_norm_weight, head_norm_bias;  // [H, Dh]
  kernels::Linear key, channel_out;
};

class Rwkv7 : public Mixer {
 public:
  explicit Rwkv7(Rwkv7Parts parts) : parts_(std::move(parts)) {}

  // State: the newest input of time mixing [B, 1, D], S [B, H, Dh, Dh], and the
  // newest input of channel mixing. Shared are the first layer's values, which
  // the others mix in. Adds its parts to the input by itself: `residual` must
  // ask for that and nothing else.
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override;

 private:
  mx::array mix_time(const mx::array& x,
                     const RecurrentState& state,
                     std::optional<mx::array>& first_values) const;
  mx::array mix_values(const mx::array& values,
                       const mx::array& input,
                       std::optional<mx::array>& first_values) const;
  mx::array mix_channels(const mx::array& x, const RecurrentState& state) const;
  mx::array in_heads(const mx::array& x) const;

  Rwkv7Parts parts_;
};

}  // namespace mlxlm::nn
