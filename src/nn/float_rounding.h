// Rounding to the small formats that a model was trained to keep things in.
// Method: mlx_lm/models/deepseek_v41.py.
#pragma once

#include <mlx/array.h>

namespace mlxlm::nn {

namespace mx = mlx::core;

// To e4m3 times a power of two for each 32 numbers of the last axis; x itself
// where they aren't a multiple of 32.
mx::array rounded_to_fp8(const mx::array& x);

// To e2m1 times a scale for each `block` numbers: a power of two, or rounded to
// e4m3.
enum class Fp4Scale { power_of_two, e4m3 };
mx::array rounded_to_fp4(const mx::array& x, int block, Fp4Scale scale);

}  // namespace mlxlm::nn
