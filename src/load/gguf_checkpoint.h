// A GGUF file as a checkpoint: configuration from its metadata, tensors under
// the reference's names with llama.cpp's rearrangements undone.
#pragma once

#include <filesystem>

#include "load/checkpoint.h"

namespace mlxlm {

// `path`: a .gguf file, for a split model any of its parts. Of the options it
// uses strict and progress; config_overrides are left to the caller. Throws
// Error{file, format, weights, unsupported, memory}.
Checkpoint load_gguf_checkpoint(const std::filesystem::path& path,
                                const LoadOptions& options = {});

}  // namespace mlxlm
