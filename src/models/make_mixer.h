// Mixers from their specs and the checkpoint's weights.
#pragma once

#include <memory>
#include <string>

#include "models/arch_spec.h"
#include "models/weight_binder.h"
#include "nn/mixer.h"

namespace mlxlm {

// The mixer of layer `layer`, whose path is "model.layers.0."; one that is made
// of several is make_layer()'s.
std::shared_ptr<nn::Mixer> make_mixer(const MixerSpec& mixer,
                                      const ArchSpec& spec,
                                      WeightBinder& weights,
                                      const std::string& layer_path,
                                      int layer);

}  // namespace mlxlm
