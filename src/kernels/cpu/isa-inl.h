// One instruction set's kernels: included once by each isa_*.cc, which defines
// MLXLM_ISA.
#pragma once

#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/elementwise-inl.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

static const IsaKernels kKernels = {
    MLXLM_ISA_NAME,
    tile_rows,
    kTiles[2],
    group_sums,
    matvec,
    pack_tile,
    matmul,
    rms_norm,
    layer_norm,
    gate,
    add_scaled,
    rotate,
    attention,
    attention_scratch_floats,
};

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
