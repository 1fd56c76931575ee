// Compressed attention and hyper-connections with their weights.
#pragma once

#include <memory>
#include <string>

#include "models/arch_spec.h"
#include "models/layer.h"
#include "models/weight_binder.h"
#include "nn/compressed_attention.h"

namespace mlxlm {

// `path` is the attention's, with a dot at its end.
std::shared_ptr<nn::Mixer> make_compressed_attention(
    const CompressedAttentionSpec& mixer,
    const ArchSpec& spec,
    WeightBinder& weights,
    const std::string& path);

// ArchSpec::hyper's "attn_hc" and "ffn_hc" of the layer at `path`.
Layer::Hyper make_hyper(const ArchSpec& spec,
                        WeightBinder& weights,
                        const std::string& path);

nn::HyperHead make_hyper_head(const ArchSpec& spec, WeightBinder& weights);

}  // namespace mlxlm
