// The tensors of a prompt-cache file, mapped where that is possible.
#pragma once

#include <string>
#include <vector>

#include "load/checkpoint.h"
#include "load/safetensors_header.h"

namespace mlxlm {

// The tensors of a layer that grows at its end, [B, H, T, D] with the same T.
struct GrowingTensors {
  std::vector<std::string> rows;   // keys and values
  std::vector<std::string> small;  // if those are quantized: scales and zeros
  std::string offset;              // how many of T are in use
};

// All tensors of the file: large ones mapped, the others evaluated. Where it
// can be had for little, those of `growing` get room for more tokens behind
// them, so that the first ones are appended without a copy. Throws Error{file}.
Weights read_cache_tensors(const std::string& path,
                           const SafetensorsHeader& header,
                           const std::vector<GrowingTensors>& growing);

}  // namespace mlxlm
