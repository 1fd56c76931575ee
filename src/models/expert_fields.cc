#include "models/expert_fields.h"

#include <mlx/mlx.h>

#include "models/config_fields.h"

namespace mlxlm {
namespace {

constexpr int kMaxExperts = 1 << 14;
constexpr int kMaxSize = 1 << 20;
constexpr int kMaxShared = 1 << 10;

// Null says none, where a default stands for a missing field only.
std::optional<int> find_number(const ConfigReader& config,
                               const char* key,
                               int fallback,
                               int max) {
  const bool given = config.raw().contains(key);
  auto number = config.find_int(key, 0, max).value_or(given ? 0 : fallback);
  return number > 0 ? std::optional(number) : std::nullopt;
}

}  // namespace

ExpertsSpec read_experts(const ConfigReader& config,
                         const ExpertFieldNames& names) {
  ExpertsSpec experts;
  experts.num_experts = config.require_int(names.count, 1, kMaxExperts);
  experts.router.num_chosen =
      config.require_int(names.chosen, 1, experts.num_experts);
  experts.hidden_size = config.require_int(names.hidden_size, 1, kMaxSize);
  return experts;
}

void read_gated_shared_expert(const ConfigReader& config,
                              ExpertsSpec& experts) {
  experts.shared_hidden_size =
      config.require_int("shared_expert_intermediate_size", 1, kMaxSize);
  experts.shared_gate = nn::SharedGate::sigmoid;
  experts.names.shared = "shared_expert";
  experts.names.shared_gate = "shared_expert_gate";
}

void read_groups(const ConfigReader& config,
                 ExpertsSpec& experts,
                 const GroupFields& fields) {
  auto& router = experts.router;
  router.num_groups =
      config.get_int(fields.count, fields.num_groups, 1, kMaxExperts);
  router.num_chosen_groups =
      config.get_int("topk_group", fields.num_chosen, 1, kMaxExperts);
  if (router.num_groups == 1) return;
  if (experts.num_experts % router.num_groups != 0 ||
      experts.num_experts < 2 * router.num_groups) {
    config.fail(fields.count,
                "a divisor of the " + std::to_string(experts.num_experts) +
                    " experts, with at least two in each group");
  }
  if (router.num_chosen_groups > router.num_groups) {
    config.fail("topk_group", std::string("at most ") + fields.count);
  }
}

std::optional<ExpertsSpec> read_routed_experts(const ConfigReader& config,
                                               const RoutedFields& fields) {
  accept_only(config, "scoring_func", {"sigmoid", "noaux_tc"});
  accept_only(config, "topk_method", {"noaux_tc"});
  const auto count =
      find_number(config, fields.count_name, fields.num_experts, kMaxExperts);
  ExpertsSpec experts;
  experts.hidden_size =
      config.get_int("moe_intermediate_size", fields.hidden_size, 1, kMaxSize);
  const int num_shared =
      find_number(config, fields.shared_name, fields.num_shared, kMaxShared)
          .value_or(0);
  experts.shared_hidden_size = num_shared * experts.hidden_size;
  experts.num_experts = count.value_or(0);
  auto& router = experts.router;
  router.score = nn::RouterScore::sigmoid;
  router.num_chosen = config.get_int(
      "num_experts_per_tok", fields.num_chosen, 1, count.value_or(kMaxExperts));
  router.normalize =
      config.get_bool("norm_topk_prob", true) && router.num_chosen > 1;
  router.scale = static_cast<float>(
      config.get_float("routed_scaling_factor", fields.scale));
  if (count) read_groups(config, experts);
  experts.names.selection_bias = "gate.e_score_correction_bias";
  return count ? std::optional(experts) : std::nullopt;
}

void use_experts(ArchSpec& spec,
                 const std::optional<ExpertsSpec>& experts,
                 int first,
                 int every) {
  const int num_layers = static_cast<int>(spec.layers.size());
  for (int i = first; i < num_layers; ++i) {
    if (i % every == 0) spec.layers[i].experts = experts;
  }
}

void keep_dense_layers(const ConfigReader& config, ArchSpec& spec) {
  const int step = config.get_int("decoder_sparse_step", 1, 1);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if ((i + 1) % step != 0) spec.layers[i].experts.reset();
  }
  const auto dense = config.find_ints("mlp_only_layers");
  for (int layer : dense.value_or(std::vector<int>{})) {
    if (static_cast<std::size_t>(layer) < spec.layers.size()) {
      spec.layers[layer].experts.reset();
    }
  }
}

void stack_layers(Checkpoint& checkpoint,
                  const ArchSpec& spec,
                  const ExpertParts& parts) {
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto& layer = spec.layers[i];
    const auto& experts = layer.experts ? layer.experts : layer.shortcut;
    if (!experts) continue;
    const auto block = spec.layer_path(static_cast<int>(i)) + spec.names.mlp;
    stack_experts(checkpoint,
                  block + ".experts.",
                  block + "." + experts->names.stack + ".",
                  experts->num_experts,
                  parts);
  }
}

void split_joined_experts(Checkpoint& checkpoint,
                          const std::string& from,
                          const std::string& to,
                          const JoinedExperts& joined) {
  auto& weights = checkpoint.weights;
  auto take = [&](const std::string& name) -> std::optional<mx::array> {
    auto value = take_weight(checkpoint, from + "." + name);
    if (value && joined.swapped && value->ndim() == 3) {
      value = mx::swapaxes(*value, -1, -2);
    }
    return value;
  };
  auto put = [&](const char* name, const mx::array& value) {
    weights.insert_or_assign(to + "." + name + ".weight", value);
  };
  if (auto gate_up = take(joined.gate_up)) {
    if (gate_up->ndim() != 3 || gate_up->shape(1) % 2 != 0) {
      weights.insert_or_assign(from + "." + joined.gate_up, *gate_up);
      return;
    }
    auto parts = mx::split(*gate_up, 2, 1);
    put("gate_proj", parts[0]);
    put("up_proj", parts[1]);
  }
  if (auto down = take(joined.down)) put("down_proj", *down);
}

}  // namespace mlxlm
