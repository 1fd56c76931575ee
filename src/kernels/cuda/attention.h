// Attention of single new tokens on NVIDIA GPUs.
#pragma once

#include "kernels/seam.h"

namespace mlxlm::kernels::cuda {

bool suits_decode(const mx::array& q,
                  const mx::array& k,
                  const mx::array& v,
                  const AttentionParameters& parameters);

mx::array decode_attention(const mx::array& q,
                           const mx::array& k,
                           const mx::array& v,
                           const AttentionParameters& parameters);

}  // namespace mlxlm::kernels::cuda
