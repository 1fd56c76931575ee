#include "cli/construction_draws.h"

#include <map>
#include <string>
#include <string_view>

#include <mlx/mlx.h>

namespace mlxlm::cli {
namespace {

// "a.b.weight" -> "a.b".
std::string module_of(const std::string& name) {
  return name.substr(0, name.rfind('.'));
}

}  // namespace

int count_construction_draws(const Model& model) {
  std::map<std::string, mx::array> parameters;
  for (Parameter& parameter : model.parameters()) {
    parameters.insert_or_assign(parameter.name, parameter.value);
  }
  int draws = 0;
  for (const auto& [name, value] : parameters) {
    std::string module = module_of(name);
    std::string_view last = std::string_view(name).substr(module.size());
    auto weight = parameters.find(module + ".weight");
    bool matrix = weight != parameters.end() && weight->second.ndim() >= 2;
    if (!matrix) {
      continue;
    }
    // One for the module's weight, one for the quantized module that replaces
    // it, and one for a linear layer's bias (stacks of experts start at zero).
    bool bias = last == ".bias" && weight->second.ndim() == 2;
    draws += last == ".weight" || last == ".scales" || bias ? 1 : 0;
  }
  return draws;
}

void skip_construction_draws(const Model& model) {
  for (int i = count_construction_draws(model); i > 0; --i) {
    mx::random::bits({1});
  }
}

}  // namespace mlxlm::cli
