// Mamba-2: one decay per head, keys and queries shared by groups of heads.
// Method: mlx_lm/models/ssm.py.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "nn/mixer.h"
#include "nn/recurrent_state.h"

namespace mlxlm::nn {

// PLaMo-2's way to keys, queries and steps: of x, once it is convolved.
struct Mamba2Select {
  kernels::Linear x;        // of the layer's input
  kernels::Linear bc_step;  // B, C and a step of low rank
  kernels::Norm b_norm, c_norm, step_norm;
  kernels::Linear step;
};

struct Mamba2Parts {
  int num_heads = 0;
  int head_size = 0;
  int num_groups = 1;
  int state_size = 0;
  // The gate, then what is convolved (x, B, C), then the step; with `select`
  // the gate alone.
  kernels::Linear in;
  std::optional<Mamba2Select> select;
  kernels::CausalConv conv;
  mx::array rate;       // exp(A_log) [H]
  mx::array step_bias;  // [H]
  mx::array skip;       // D [H]
  float min_step = 0.0f, max_step = 0.0f;
  // Of the answers times SiLU(gate), over each of `norm_groups` parts of them;
  // or, if norm_before_gate, of the answers alone. None: not normalized.
  std::optional<kernels::Norm> norm;  // [H * Dh]
  int norm_groups = 1;
  bool norm_before_gate = false;
  kernels::Linear out;

  int inner_size() const { return num_heads * head_size; }
  int conv_size() const { return inner_size() + 2 * num_groups * state_size; }
};

class Mamba2 : public Mixer {
 public:
  explicit Mamba2(Mamba2Parts parts) : parts_(std::move(parts)) {}

  // State: the newest inputs of the convolution, then S [B, H, Dh, N].
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override;

 private:
  std::array<mx::array, 3> selected(const mx::array& x) const;
  mx::array scan(const mx::array& inner,
                 const mx::array& keys,
                 const mx::array& queries,
                 const mx::array& step,
                 const RecurrentState& state) const;
  mx::array gated(const mx::array& y, const mx::array& gate) const;
  mx::array normalized(const mx::array& y) const;

  Mamba2Parts parts_;
};

}  // namespace mlxlm::nn
