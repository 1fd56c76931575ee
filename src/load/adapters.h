// LoRA and DoRA adapters, as mlx_lm.lora writes them: adapter_config.json and
// adapters.safetensors.
//
//   Adapter adapter = load_adapter(options.adapter_path);
//   check_adapter(adapter, targets, num_layers);  // what the model has
//   for (auto& [module, low_rank] : adapter.modules) ...
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include <mlx/array.h>

#include "load/checkpoint.h"

namespace mlxlm {

enum class AdapterKind { lora, dora, full };

// What is added to one layer: y + scale * (x a) b, with DoRA times
// magnitude / |w + scale * (a b)^T| by rows.
//   linear     a [in, r], b [r, out], magnitude [out]
//   embedding  a [vocabulary, r], b [r, width], magnitude [vocabulary]
//   experts    a [E, r, in], b [E, out, r]
struct AdapterModule {
  std::optional<mx::array> a;
  std::optional<mx::array> b;
  std::optional<mx::array> magnitude;
};

struct Adapter {
  AdapterKind kind = AdapterKind::lora;
  int rank = 0;
  float scale = 0.0f;
  int num_layers = 0;  // adapted, from the last one on; 0 or less: all
  // Adapted modules by their path inside a layer or in the model; none: all.
  std::optional<std::set<std::string>> keys;
  std::map<std::string, AdapterModule> modules;  // by the path in the model
  Weights tensors;                               // full: they replace
  std::string source;                            // the folder
};

// Throws Error{file, config, format, weights, unsupported}.
Adapter load_adapter(const std::string& folder);

// A layer of the model that may be adapted.
struct AdapterTarget {
  enum class Kind { linear, embedding, experts };
  Kind kind = Kind::linear;
  int rows = 0;     // outputs, or the vocabulary
  int columns = 0;  // inputs, or the width
  int experts = 0;  // of a stack
};

// The shapes that the tensors of a module must have.
struct AdapterShapes {
  mx::Shape a, b, magnitude;
};
AdapterShapes adapter_shapes(const AdapterTarget& target, int rank);

// Checks that every tensor belongs to a module of the model that the adapter
// adapts, and has its shape; `num_layers` of the model. Throws Error{weights}
// listing all faults.
void check_adapter(const Adapter& adapter,
                   const std::map<std::string, AdapterTarget>& targets,
                   int num_layers);

// The same for a full fine-tuning: every tensor must be a parameter of the
// model and have its shape.
void check_full_adapter(const Adapter& adapter, const Weights& parameters);

}  // namespace mlxlm
