// One layer of a decoder with its weights.
#pragma once

#include <functional>
#include <optional>
#include <variant>

#include "models/arch_spec.h"
#include "models/weight_binder.h"
#include "nn/attention.h"
#include "nn/latent_attention.h"
#include "nn/mlp.h"

namespace mlxlm {

struct Layer {
  std::optional<kernels::Norm> attention_norm, attention_output_norm;
  std::optional<kernels::Norm> mlp_norm, mlp_output_norm;
  std::variant<nn::Attention, nn::LatentAttention> attention;
  std::variant<nn::Mlp, nn::Experts> mlp;
};

// Takes the weights of layer `index`, which points into the spec.
Layer make_layer(const ArchSpec& spec, WeightBinder& weights, int index);

// Calls `visit` for each of its matrices.
void for_each_linear(Layer& layer,
                     const std::function<void(kernels::Linear&)>& visit);

}  // namespace mlxlm
