#include "models/weight_names.h"

#include <charconv>
#include <optional>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

// What the stars of the pattern stand for, the first as short as possible; none
// if the name doesn't match.
std::optional<std::vector<std::string_view>> match(std::string_view pattern,
                                                   std::string_view name) {
  const auto star = pattern.find('*');
  if (name.substr(0, star) != pattern.substr(0, star)) return std::nullopt;
  if (star == std::string_view::npos) {
    if (name.size() != pattern.size()) return std::nullopt;
    return std::vector<std::string_view>{};
  }
  const auto rest = pattern.substr(star + 1);
  for (auto end = star; end <= name.size(); ++end) {
    if (auto found = match(rest, name.substr(end))) {
      found->insert(found->begin(), name.substr(star, end - star));
      return found;
    }
  }
  return std::nullopt;
}

std::string filled(std::string_view name,
                   const std::vector<std::string_view>& parts) {
  std::string result;
  std::size_t next = 0;
  for (char c : name) {
    if (c == '*' && next < parts.size()) {
      result += parts[next++];
    } else {
      result += c;
    }
  }
  return result;
}

// `suffix` is what a key lacks of a tensor's name.
template <typename Map>
void rename_keys(Map& map, const WeightRule& rule, std::string_view suffix) {
  std::vector<std::pair<std::string, std::string>> renamed;
  for (const auto& [key, value] : map) {
    const auto full = key + std::string(suffix);
    if (auto parts = match(rule.pattern, full)) {
      auto name = filled(rule.name, *parts);
      if (name.ends_with(suffix)) name.resize(name.size() - suffix.size());
      renamed.emplace_back(key, std::move(name));
    }
  }
  std::vector<typename Map::node_type> nodes;
  for (auto& [key, name] : renamed) {
    nodes.push_back(map.extract(key));
    nodes.back().key() = std::move(name);
  }
  for (auto& node : nodes) map.insert(std::move(node));
}

template <typename Change>
void for_each(Checkpoint& checkpoint,
              const std::string& pattern,
              const Change& change) {
  for (auto& [name, value] : checkpoint.weights) {
    if (match(pattern, name)) value = change(value);
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

void apply_rules(Checkpoint& checkpoint, const std::vector<WeightRule>& rules) {
  for (const auto& rule : rules) {
    switch (rule.action) {
      case WeightRule::Action::drop:
        drop_weights(checkpoint, [&](std::string_view name) {
          return match(rule.pattern, name).has_value();
        });
        break;
      case WeightRule::Action::rename:
        rename_keys(checkpoint.weights, rule, "");
        rename_keys(checkpoint.quantized, rule, ".weight");
        break;
      case WeightRule::Action::transpose:
        for_each(checkpoint, rule.pattern, [](const mx::array& value) {
          return value.ndim() == 2 ? mx::transpose(value) : value;
        });
        break;
      case WeightRule::Action::squeeze:
        for_each(checkpoint, rule.pattern, [](const mx::array& value) {
          return mx::squeeze(value);
        });
        break;
    }
  }
}

void rename_prefix(Checkpoint& checkpoint,
                   const std::string& from,
                   const std::string& to) {
  apply_rules(checkpoint, {{WeightRule::Action::rename, from + "*", to + "*"}});
}

void drop_layers_from(Checkpoint& checkpoint,
                      const std::string& layers,
                      int num_layers) {
  drop_weights(checkpoint, [&](std::string_view name) {
    if (!name.starts_with(layers)) return false;
    int layer = 0;
    const auto* begin = name.data() + layers.size();
    auto [end, error] =
        std::from_chars(begin, name.data() + name.size(), layer);
    return error == std::errc() && layer >= num_layers;
  });
}

void give_unit_length(Checkpoint& checkpoint,
                      const std::string& path,
                      int axis) {
  auto found = checkpoint.weights.find(path + ".weight");
  if (found == checkpoint.weights.end() || found->second.ndim() != 2 ||
      checkpoint.quantized.contains(path)) {
    return;
  }
  auto wide = mx::astype(found->second, mx::float32);
  auto length = mx::sqrt(mx::sum(mx::square(wide), axis, /*keepdims=*/true));
  found->second =
      mx::astype(mx::divide(wide, mx::add(length, mx::array(1e-7f))),
                 found->second.dtype());
}

std::optional<mx::array> take_weight(Checkpoint& checkpoint,
                                     const std::string& name) {
  auto node = checkpoint.weights.extract(name);
  if (node.empty()) return std::nullopt;
  return node.mapped();
}

void stack_experts(Checkpoint& checkpoint,
                   const std::string& from,
                   const std::string& to,
                   int num_experts,
                   const ExpertParts& parts) {
  auto& weights = checkpoint.weights;
  std::string faults;
  for (const auto& [old_part, new_part] : parts) {
    auto path_of = [&, part = old_part](int expert) {
      return from + std::to_string(expert) + "." + part;
    };
    const auto new_path = to + new_part;
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
                checkpoint.source + ": the experts " + from +
                    " don't form a stack of " + std::to_string(num_experts) +
                    ":" + faults);
  }
}

}  // namespace mlxlm
