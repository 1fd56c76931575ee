// The conversions behind foreign.h, one per format. Each takes the tensors of
// its modules out of `weights` and puts MLX's in; what can't be converted goes
// to `faults`.
#pragma once

#include <set>
#include <string>

#include "load/checkpoint.h"
#include "load/config.h"
#include "load/faults.h"

namespace mlxlm::foreign {

// AutoAWQ and GPTQ: qweight, scales, qzeros. Returns the map's setting.
Quantization convert_awq_gptq(const ConfigReader& settings,
                              Weights& weights,
                              Faults& faults);

// weight_packed, weight_scale, weight_shape of compressed-tensors.
Quantization convert_compressed_tensors(const ConfigReader& settings,
                                        Weights& weights,
                                        Faults& faults);

// X_blocks [..., groups, 16] and X_scales [..., groups] -> X.weight, X.scales.
void convert_mxfp4_blocks(Weights& weights, Faults& faults);

// weight (e4m3 bytes) and weight_scale_inv (e8m0 exponents, per row or per
// 32x32 block) -> mxfp8.
void convert_mxfp8(Weights& weights, Faults& faults);

// weight (e4m3 bytes) times its *_scale_inv (per block of `block` x `block`,
// or broadcast) -> bfloat16.
void dequantize_fp8(int block, Weights& weights, Faults& faults);

// weight [N / 4, K] of four 2-bit numbers and weight_scale [1].
Quantization convert_bitnet(const ConfigReader& settings,
                            Weights& weights,
                            Faults& faults);

}  // namespace mlxlm::foreign
