// The reference's own pieces, shared by its files.
#pragma once

#include "kernels/seam.h"

namespace mlxlm::kernels::reference {

// x [..., K] -> [..., N].
mx::array linear(const mx::array& x, const Linear& linear);

mx::array attention(const mx::array& q,
                    const mx::array& k,
                    const mx::array& v,
                    const AttentionParameters& parameters);

mx::array quantized_attention(const mx::array& q,
                              const QuantizedTensor& k,
                              const QuantizedTensor& v,
                              const AttentionParameters& parameters);

mx::array expert_mlp(const mx::array& x,
                     const Experts& experts,
                     const mx::array& indices,
                     const mx::array& scores);

Scanned causal_conv(const mx::array& x,
                    const CausalConv& conv,
                    const mx::array& state);

Scanned matrix_scan(const MatrixScan& scan, const mx::array& state);

Scanned selective_scan(const SelectiveScan& scan, const mx::array& state);

Scanned decayed_sum(const mx::array& x,
                    const mx::array& decay,
                    const mx::array& state);

}  // namespace mlxlm::kernels::reference
