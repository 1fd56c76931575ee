// The text of the *.cuh files.
#pragma once

namespace mlxlm::kernels::cuda {

extern const char* const k_common;
extern const char* const k_quantized_weights;
extern const char* const k_quantized_matmul;
extern const char* const k_decode_attention;
extern const char* const k_heads;
extern const char* const k_logits;
extern const char* const k_async;
extern const char* const k_wgmma;
extern const char* const k_wide_input;
extern const char* const k_wide_matmul;
extern const char* const k_wide_output;
extern const char* const k_step_stream;
extern const char* const k_step_input;
extern const char* const k_step_sources;
extern const char* const k_step_linear;
extern const char* const k_step_attention;
extern const char* const k_step_experts;
extern const char* const k_step_ranks;
extern const char* const k_step_arguments;
extern const char* const k_step_results;
extern const char* const k_step;
extern const char* const k_wide_step_results;
extern const char* const k_wide_step;

}  // namespace mlxlm::kernels::cuda
