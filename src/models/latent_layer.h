// Latent attention of a layer with its weights.
#pragma once

#include <string>

#include "models/arch_spec.h"
#include "models/weight_binder.h"
#include "nn/latent_attention.h"

namespace mlxlm {

// `path` of the part with a dot at the end. Points into the spec.
nn::LatentAttention make_latent_attention(const ArchSpec& spec,
                                          const LayerSpec& layer,
                                          WeightBinder& weights,
                                          const std::string& path);

// The indexer of plain attention; `path` is attention's.
nn::BlockIndex make_block_index(const ArchSpec& spec,
                                WeightBinder& weights,
                                const std::string& path,
                                const BlockIndexSpec& index);

}  // namespace mlxlm
