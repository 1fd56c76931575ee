#include "models/weight_sharding.h"

#include <utility>

#include <mlx/mlx.h>

namespace mlxlm {
namespace {

bool can_split(const nn::Attention& a) {
  const int head_size = a.q.weight.shape(-2) / a.num_heads;
  auto each_head = [&](const std::optional<kernels::Norm>& norm) {
    return !norm || !norm->weight || norm->weight->ndim() == 2 ||
           norm->weight->shape(0) == head_size;
  };
  return !a.alternating_heads && !a.heads_norm && !a.mix && !a.blocks &&
         !a.index && each_head(a.q_norm) && each_head(a.k_norm);
}

bool can_split(const nn::Mlp& mlp) {
  return !mlp.own_activation && !mlp.hidden_norm;
}

bool can_split(const nn::Experts& experts) {
  return !experts.norms.each &&
         experts.router.linear.weight.shape(0) == experts.num_experts &&
         (!experts.shared || can_split(*experts.shared));
}

}  // namespace

void WeightSharding::note(const kernels::Linear& whole,
                          const kernels::Linear& part) {
  parts_.insert_or_assign(whole.weight.id(), part.weight);
  if (whole.scales) parts_.insert_or_assign(whole.scales->id(), *part.scales);
  if (whole.zeros) parts_.insert_or_assign(whole.zeros->id(), *part.zeros);
}

void WeightSharding::keep_outputs(kernels::Linear& linear) {
  auto part = nn::part_of_outputs(linear, share_);
  note(linear, part);
  linear = std::move(part);
}

void WeightSharding::keep_inputs(kernels::Linear& linear,
                                 const std::string& what) {
  auto part = nn::part_of_inputs(linear, what, share_);
  note(linear, part);
  linear = std::move(part);
}

void WeightSharding::split(nn::Attention& a) {
  if (!can_split(a)) return;
  a.num_heads = nn::share_of(a.num_heads, 1, "heads", share_);
  a.num_kv_heads = nn::share_of(a.num_kv_heads, 1, "key heads", share_);
  keep_outputs(a.q);
  for (auto* each : {&a.k, &a.v, &a.gate}) {
    if (*each) keep_outputs(**each);
  }
  keep_inputs(a.o, "numbers of the heads' answers");
  for (auto* norm : {&a.q_norm, &a.k_norm}) {
    if (*norm && (*norm)->weight && (*norm)->weight->ndim() == 2) {
      (*norm)->weight = nn::part_of(*(*norm)->weight, -2, share_);
    }
  }
  if (a.query_gain) a.query_gain = nn::part_of(*a.query_gain, -3, share_);
  if (a.spec.sinks) a.spec.sinks = nn::part_of(*a.spec.sinks, -1, share_);
  a.partial = true;
}

bool WeightSharding::split(nn::Mlp& mlp) {
  if (!can_split(mlp)) return false;
  keep_inputs(mlp.down, "hidden numbers of the MLP");
  keep_outputs(mlp.up);
  if (mlp.gate) keep_outputs(*mlp.gate);
  return true;
}

void WeightSharding::split(nn::Experts& experts) {
  if (!can_split(experts)) return;
  keep_inputs(experts.down, "hidden numbers of an expert");
  keep_outputs(experts.up);
  if (experts.gate) keep_outputs(*experts.gate);
  if (experts.shared) split(*experts.shared);
  experts.partial = true;
}

void WeightSharding::operator()(Layer& layer) {
  if (auto* attention = std::get_if<nn::Attention>(&layer.mixer)) {
    split(*attention);
  }
  if (auto* mlp = std::get_if<nn::Mlp>(&layer.mlp)) mlp->partial = split(*mlp);
  if (auto* experts = std::get_if<nn::Experts>(&layer.mlp)) split(*experts);
  if (layer.shortcut) split(*layer.shortcut);
}

bool WeightSharding::split_head(kernels::Linear& head) {
  if (head.weight.shape(-2) % share_.count != 0) return false;
  keep_outputs(head);
  return true;
}

std::unordered_set<std::uintptr_t> WeightSharding::replace(
    std::vector<Parameter>& parameters, std::vector<SplitTensor>& splits) {
  std::unordered_set<std::uintptr_t> joined;
  std::unordered_map<std::uintptr_t, Parameter*> places;
  for (auto& parameter : parameters) {
    places[parameter.value.id()] = &parameter;
    auto found = parts_.find(parameter.value.id());
    if (found != parts_.end()) parameter.value = found->second;
  }
  for (auto& split : splits) {
    bool any = false;
    for (auto& part : split.parts) {
      auto found = parts_.find(part.id());
      if (found == parts_.end()) continue;
      part = found->second;
      any = true;
    }
    auto whole = places.find(split.whole);
    if (!any || whole == places.end()) continue;
    if (split.num_groups > 1) split.num_groups /= share_.count;
    whole->second->value = split.joined();
    split.whole = whole->second->value.id();
    joined.insert(split.whole);
  }
  parts_.clear();
  return joined;
}

}  // namespace mlxlm
