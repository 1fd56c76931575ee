// Renaming what checkpoints call differently from the reference's layout.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "load/checkpoint.h"

namespace mlxlm {

// What becomes of each tensor whose name matches `pattern`, in which a * stands
// for any characters. Lazy: data is read and moved when the model is evaluated.
struct WeightRule {
  enum class Action { drop, rename, transpose, squeeze };
  Action action;
  std::string pattern;
  std::string name = {};  // of rename: each * is what the pattern's was
};

// Applies one rule after the other to all names.
void apply_rules(Checkpoint& checkpoint, const std::vector<WeightRule>& rules);

// Forgets every tensor whose name fulfils the condition.
void drop_weights(Checkpoint& checkpoint,
                  const std::function<bool(std::string_view name)>& condition);

// Names that begin with `from` begin with `to` instead.
void rename_prefix(Checkpoint& checkpoint,
                   const std::string& from,
                   const std::string& to);

// The parts of an expert: its name in the checkpoint and in the stack.
using ExpertParts = std::vector<std::pair<std::string, std::string>>;

// "<from><e>.<part>.<tensor>" of all experts become one tensor
// "<to><part>.<tensor>", [E, ...]. Nothing happens where there is no expert 0.
// Throws Error{weights} that lists the experts missing or of other shapes.
void stack_experts(Checkpoint& checkpoint,
                   const std::string& from,
                   const std::string& to,
                   int num_experts,
                   const ExpertParts& parts);

// Forgets layers that the model hasn't: those for predicting several tokens at
// once come after the last. `layers` is e.g. "model.layers.".
void drop_layers_from(Checkpoint& checkpoint,
                      const std::string& layers,
                      int num_layers);

// Gives the rows (`axis` -1) or columns (0) of a matrix length 1. Nothing
// happens where it is missing or quantized.
void give_unit_length(Checkpoint& checkpoint,
                      const std::string& path,
                      int axis);

// Takes the tensor if it is there.
std::optional<mx::array> take_weight(Checkpoint& checkpoint,
                                     const std::string& name);

}  // namespace mlxlm
