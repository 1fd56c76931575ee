// The fused operations made of a table's others, which is what they mean, and
// what tables fall back on.
#pragma once

#include "kernels/seam.h"

namespace mlxlm::kernels::composite {

std::vector<mx::array> norm_heads(const Table& table,
                                  const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions);

AppendedAttention append_attention(const Table& table,
                                   const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters);

mx::array finish_layer(const Table& table,
                       const mx::array& heads,
                       const mx::array& x,
                       const LayerEnd& end);

}  // namespace mlxlm::kernels::composite
