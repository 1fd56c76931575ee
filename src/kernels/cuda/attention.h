// Attention of one new token per sequence, on NVIDIA GPUs.
#pragma once

#include <optional>
#include <span>

#include "kernels/seam.h"

namespace mlxlm::kernels::cuda {

AppendedAttention append_attention(const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters);

std::optional<AppendedRows> append_rows(const mx::array& q,
                                        const mx::array& k,
                                        const mx::array& v,
                                        std::span<const BatchRow> rows,
                                        const AttentionParameters& parameters);

}  // namespace mlxlm::kernels::cuda
