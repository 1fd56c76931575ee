// How much memory a prompt's keys and values will need.
#pragma once

#include <cstdint>

#include <mlxlm/generate.h>

namespace mlxlm {

// Bytes of a prompt cache that has read `num_tokens`, with the options'
// max_kv_size, chunks and quantization. Nothing is computed: the shapes of an
// unevaluated pass tell.
std::uint64_t estimate_cache_bytes(Model& model,
                                   int num_tokens,
                                   const GenerateOptions& options = {});

}  // namespace mlxlm
