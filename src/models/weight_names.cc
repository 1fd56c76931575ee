#include "models/weight_names.h"

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

template <typename Map>
void rename_keys(Map& map, const std::string& from, const std::string& to) {
  std::vector<std::string> old_names;
  for (const auto& [name, value] : map) {
    if (name.starts_with(from)) old_names.push_back(name);
  }
  for (const auto& name : old_names) {
    auto node = map.extract(name);
    node.key() = to + name.substr(from.size());
    map.insert(std::move(node));
  }
}

}  // namespace

void drop_weights(Checkpoint& checkpoint,
                  const std::function<bool(std::string_view)>& condition) {
  std::erase_if(checkpoint.weights,
                [&](const auto& entry) { return condition(entry.first); });
  std::erase_if(checkpoint.quantized, [&](const auto& entry) {
    return condition(entry.first + ".weight");
  });
}

void rename_prefix(Checkpoint& checkpoint,
                   const std::string& from,
                   const std::string& to) {
  rename_keys(checkpoint.weights, from, to);
  rename_keys(checkpoint.quantized, from, to);
}

void stack_experts(Checkpoint& checkpoint,
                   const std::string& block,
                   int num_experts,
                   const ExpertParts& parts) {
  auto& weights = checkpoint.weights;
  std::string faults;
  for (const auto& [old_part, new_part] : parts) {
    auto path_of = [&, part = old_part](int expert) {
      return block + ".experts." + std::to_string(expert) + "." + part;
    };
    const auto new_path = block + ".switch_mlp." + new_part;
    for (const char* tensor : {".weight", ".scales", ".biases", ".bias"}) {
      auto first = weights.find(path_of(0) + tensor);
      if (first == weights.end()) continue;
      const auto shape = first->second.shape();
      std::vector<mx::array> stack;
      for (int e = 0; e < num_experts; ++e) {
        const auto name = path_of(e) + tensor;
        auto found = weights.find(name);
        if (found == weights.end()) {
          faults += "\n  " + name + " is missing";
        } else if (found->second.shape() != shape) {
          faults += "\n  " + name + " has another shape than expert 0's";
        } else {
          stack.push_back(found->second);
          weights.erase(found);
        }
      }
      if (faults.empty()) {
        weights.insert_or_assign(new_path + tensor, mx::stack(stack, 0));
      }
    }
    auto quantization = checkpoint.quantized.find(path_of(0));
    if (quantization == checkpoint.quantized.end()) continue;
    checkpoint.quantized.insert_or_assign(new_path, quantization->second);
    for (int e = 0; e < num_experts; ++e) {
      checkpoint.quantized.erase(path_of(e));
    }
  }
  if (!faults.empty()) {
    throw Error(ErrorKind::weights,
                checkpoint.source + ": the experts of " + block +
                    " don't form a stack of " + std::to_string(num_experts) +
                    ":" + faults);
  }
}

}  // namespace mlxlm
