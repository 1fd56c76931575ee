// One layer of a decoder with its weights.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <variant>

#include "models/arch_spec.h"
#include "models/weight_binder.h"
#include "nn/altup.h"
#include "nn/attention.h"
#include "nn/hyper_connection.h"
#include "nn/latent_attention.h"
#include "nn/mixer.h"
#include "nn/mlp.h"
#include "nn/per_layer_inputs.h"

namespace mlxlm {

using MixerPtr = std::shared_ptr<nn::Mixer>;

inline const kernels::Norm* pointer(const std::optional<kernels::Norm>& norm) {
  return norm ? &*norm : nullptr;
}

struct Layer {
  std::optional<kernels::Norm> attention_norm, attention_output_norm;
  std::optional<kernels::Norm> mlp_norm, mlp_output_norm;
  // Either may be missing. A mixer belongs to the layers that repeat this one,
  // too.
  std::variant<std::monostate, nn::Attention, nn::LatentAttention, MixerPtr>
      mixer;
  std::variant<std::monostate, nn::Mlp, nn::Experts, kernels::Linear> mlp;
  std::optional<nn::Experts> shortcut;  // LayerSpec::shortcut
  // LayerNames::attention_mix and mlp_mix.
  struct Mix {
    mx::array stream, added;  // [D]

    mx::array operator()(const mx::array& x, const mx::array& more) const;
  };
  std::optional<Mix> attention_mix, mlp_mix;
  // What attention and MLP read (nn::ResidualBlocks).
  struct Depth {
    bool begins_block = false;
    kernels::Norm attention, mlp;
  };
  std::optional<Depth> depth;
  struct Hyper {
    nn::HyperConnection attention, mlp;
  };
  std::optional<Hyper> hyper;
  std::optional<nn::PerLayerGate> per_layer_gate;
  std::optional<mx::array> scalar;            // [1], multiplies what it answers
  std::optional<mx::array> first_state_gain;  // [1]
  std::optional<nn::AltUp> altup;
  std::optional<mx::array> altup_output_scale;  // [D]
  std::optional<nn::Laurel> laurel;
};

// Takes the weights of layer `index`, which points into the spec. The index
// after the last layer's is the draft head's.
Layer make_layer(const ArchSpec& spec, WeightBinder& weights, int index);

// The layer that has the weights of `layer` at place `index`.
Layer repeat_layer(const ArchSpec& spec, const Layer& layer, int index);

// Calls `visit` for each of its matrices.
void for_each_linear(Layer& layer,
                     const std::function<void(kernels::Linear&)>& visit);

}  // namespace mlxlm
