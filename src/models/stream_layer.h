// The parts of a layer around attention and MLP: several streams, a way around
// attention, a part of a second embedding.
#pragma once

#include <string>

#include "models/layer.h"

namespace mlxlm {

// `path` is the layer's, with a dot at its end. Of ArchSpec::per_layer_input:
nn::PerLayerGate make_per_layer_gate(const ArchSpec& spec,
                                     WeightBinder& weights,
                                     const std::string& path);

// Of ArchSpec::altup: altup, altup_output_scale and laurel.
void add_altup(Layer& layer,
               const ArchSpec& spec,
               WeightBinder& weights,
               const std::string& path);

// The norm "<path>_norm" with its weight times the row "<path>_proj", for
// nn::ResidualBlocks.
kernels::Norm depth_mix(const ArchSpec& spec,
                        WeightBinder& weights,
                        const std::string& path);

// Layer::depth of the layer `index` at `path`.
Layer::Depth make_depth(const ArchSpec& spec,
                        WeightBinder& weights,
                        const std::string& path,
                        int index);

}  // namespace mlxlm
