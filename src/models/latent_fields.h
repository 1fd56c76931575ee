// Fields of multi-head latent attention, and how its tensors come to their
// places.
#pragma once

#include "load/checkpoint.h"
#include "load/config.h"
#include "models/arch_spec.h"

namespace mlxlm {

// 0: required.
struct LatentDefaults {
  int rank = 0;
  int query_rank = 0;
  int fixed = 0;
  int rotated = 0;
  int value = 0;
};

// Sizes, attention_bias and the scale of attention, which grows with yarn's
// mscale_all_dim.
LatentSpec read_latent(const ConfigReader& config,
                       ArchSpec& spec,
                       const LatentDefaults& defaults);

// "<attention>.kv_b_proj", which holds each head's keys and values one after
// the other, in the two parts of absorbed attention: "embed_q" [H, rank, fixed]
// and "unembed_out" [H, value, rank]. A quantized one is quantized again, as
// far as the sizes allow it.
void split_kv_b(Checkpoint& checkpoint,
                const std::string& attention,
                const nn::LatentSizes& sizes);

}  // namespace mlxlm
