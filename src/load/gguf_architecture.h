// What GGUF files of each architecture hold, and what the reference calls it.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "load/gguf_parts.h"

namespace mlxlm {

// What llama.cpp's converter did to a tensor, to be undone.
enum class GgufChange {
  none,
  permuted_queries,  // rows of each head reordered for interleaved rope
  permuted_keys,
  plus_one,   // a norm's weight, stored as 1 + weight
  flattened,  // [1, K] stored as [K]
};

struct GgufTensorName {
  std::string_view gguf;       // "attn_q" of "blk.0.attn_q.weight"
  std::string_view reference;  // "self_attn.q_proj"
  GgufChange change = GgufChange::none;
};

struct GgufArchitecture {
  std::string_view name;        // general.architecture
  std::string_view model_type;  // of the reference
  // Of each layer; all have a ".weight", some also a ".bias".
  std::vector<GgufTensorName> layer_tensors;
  bool norms_plus_one = false;
};

// Throws Error{unsupported} that names the supported ones.
const GgufArchitecture& find_gguf_architecture(const GgufParts& parts);

// The tensors outside the layers: embedding, final norm, head.
std::span<const GgufTensorName> gguf_outer_tensors();

}  // namespace mlxlm
