// What there is to say about a loaded model.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <mlxlm/model.h>
#include <mlxlm/tokenizer.h>

namespace mlxlm::cli {

// Embedding, attention, MLP and so on, over all layers.
struct PartSummary {
  std::int64_t num_parameters = 0;
  std::uint64_t num_bytes = 0;
  // "bfloat16", "4-bit affine, group 64" -> parameters stored so.
  std::map<std::string, std::int64_t> formats;
};

struct MemoryEstimate {
  int context_tokens = 0;
  std::uint64_t weight_bytes = 0;
  // None if the model's caches can't be foreseen.
  std::optional<std::uint64_t> cache_bytes;
};

struct ModelSummary {
  std::map<std::string, PartSummary> parts;
  PartSummary total;
  std::map<std::string, int> cache_kinds;  // class name -> layers
  MemoryEstimate memory;
};

// Reads no weights: shapes are enough. context_tokens > 0.
ModelSummary summarize(Model& model, int context_tokens);

// Which variables and roles a chat template looks at: "tools", "thinking",
// "system", ...
std::vector<std::string> template_features(const Tokenizer& tokenizer);

}  // namespace mlxlm::cli
