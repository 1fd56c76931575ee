// The metadata of a GGUF file as the config.json that the reference would
// read.
#pragma once

#include <nlohmann/json.hpp>

#include "load/gguf_architecture.h"
#include "load/gguf_parts.h"

namespace mlxlm {

// Throws Error{format, unsupported}.
nlohmann::json gguf_config(const GgufParts& parts,
                           const GgufArchitecture& architecture);

}  // namespace mlxlm
