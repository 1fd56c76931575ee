// The text of the *.cuh files.
#pragma once

namespace mlxlm::kernels::cuda {

extern const char* const k_common;
extern const char* const k_quantized_matmul;
extern const char* const k_decode_attention;

}  // namespace mlxlm::kernels::cuda
