#include <vector>

#include "models/layer.h"

namespace mlxlm {

void for_each_linear(Layer& layer,
                     const std::function<void(kernels::Linear&)>& visit) {
  auto visit_all = [&](const std::vector<kernels::Linear*>& linears) {
    for (auto* each : linears) visit(*each);
  };
  if (auto* attention = std::get_if<nn::Attention>(&layer.mixer)) {
    visit_all(attention->linears());
  } else if (auto* latent = std::get_if<nn::LatentAttention>(&layer.mixer)) {
    visit_all(latent->linears());
  } else if (auto* mixer = std::get_if<MixerPtr>(&layer.mixer)) {
    visit_all((*mixer)->linears());
  }
  if (auto* mlp = std::get_if<nn::Mlp>(&layer.mlp)) {
    visit_all(mlp->linears());
  } else if (auto* experts = std::get_if<nn::Experts>(&layer.mlp)) {
    visit_all(experts->linears());
  } else if (auto* linear = std::get_if<kernels::Linear>(&layer.mlp)) {
    visit(*linear);
  }
  if (layer.shortcut) visit_all(layer.shortcut->linears());
  if (auto& gate = layer.per_layer_gate) {
    visit(gate->gate);
    visit(gate->projection);
  }
}

}  // namespace mlxlm
