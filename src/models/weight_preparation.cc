#include "models/weight_preparation.h"

#include <utility>

#include <mlx/mlx.h>

namespace mlxlm {

mx::array SplitTensor::joined() const {
  std::vector<mx::array> grouped;
  for (const auto& part : parts) {
    grouped.push_back(mx::unflatten(part, 0, {num_groups, -1}));
  }
  return mx::flatten(mx::concatenate(grouped, 1), 0, 1);
}

WeightPreparation::WeightPreparation(std::vector<Parameter>& parameters,
                                     std::vector<SplitTensor> splits)
    : parameters_(parameters), splits_(std::move(splits)) {
  for (auto& parameter : parameters) {
    places_[parameter.value.id()].parameter = &parameter;
  }
  for (auto& split : splits_) {
    auto whole = places_.find(split.whole);
    if (whole == places_.end()) continue;
    auto* parameter = whole->second.parameter;
    for (std::size_t i = 0; i < split.parts.size(); ++i) {
      places_[split.parts[i].id()] = {parameter, &split, i};
    }
  }
}

void WeightPreparation::operator()(kernels::Linear& linear) {
  auto find = [&](const mx::array& array) -> const Place* {
    auto found = places_.find(array.id());
    return found == places_.end() ? nullptr : &found->second;
  };
  const Place* weight = find(linear.weight);
  const Place* scales = linear.scales ? find(*linear.scales) : nullptr;
  const Place* zeros = linear.zeros ? find(*linear.zeros) : nullptr;
  if (weight == nullptr || (linear.scales && scales == nullptr) ||
      (linear.zeros && zeros == nullptr)) {
    return;
  }
  kernels::table().prepare(linear);
  put(*weight, linear.weight);
  if (scales != nullptr) put(*scales, *linear.scales);
  if (zeros != nullptr) put(*zeros, *linear.zeros);
}

std::vector<mx::array> WeightPreparation::others() const {
  std::vector<mx::array> arrays;
  for (const Parameter& each : parameters_) {
    if (!replaced_.contains(&each)) arrays.push_back(each.value);
  }
  return arrays;
}

void WeightPreparation::put(const Place& place, const mx::array& value) {
  replaced_.insert(place.parameter);
  auto* split = place.split;
  if (split == nullptr) {
    place.parameter->value = value;
    return;
  }
  split->parts[place.part] = value;
  if (++num_put_[split] == split->parts.size()) {
    place.parameter->value = split->joined();
    split->parts.clear();
  }
}

}  // namespace mlxlm
