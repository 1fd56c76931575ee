// One instruction set's kernels: included once by each isa_*.cc, which defines
// MLXLM_ISA.
#pragma once

#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/elementwise-inl.h"
#include "kernels/cpu/integer_tiles-inl.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul-inl.h"
#include "kernels/cpu/recurrence-inl.h"
#include "kernels/cpu/rounding-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

static const IsaKernels kKernels = {
    MLXLM_ISA_NAME,
    tile_rows,
    kMaxTileRows,
    pack_tile,
    matmul,
    integer_tile_rows,
    kMaxIntegerRows,
    round_rows,
    integer_matmul,
    rms_norm,
    layer_norm,
    gate,
    largest,
    sum_of_exponentials,
    subtract,
    scale_add,
    add_scaled,
    rotate,
    attention,
    attention_scratch_floats,
    to_half,
    convolve,
    matrix_step,
    selective_step,
    decay_and_add,
};

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
