// Fields of mixtures of experts, and how their tensors come to their places.
#pragma once

#include <optional>

#include "load/config.h"
#include "models/arch_spec.h"
#include "models/weight_names.h"

namespace mlxlm {

struct ExpertFieldNames {
  const char* count = "num_experts";
  const char* chosen = "num_experts_per_tok";
  const char* hidden_size = "moe_intermediate_size";
};

// Number and size of the experts, and how many are chosen: all required.
ExpertsSpec read_experts(const ConfigReader& config,
                         const ExpertFieldNames& names = {});

// An expert that is always asked, behind a gate of its own, as Qwen has it.
void read_gated_shared_expert(const ConfigReader& config, ExpertsSpec& experts);

// n_group (or what it is called) and topk_group; num_experts must be known.
struct GroupFields {
  const char* count = "n_group";
  int num_groups = 1;
  int num_chosen = 1;
};
void read_groups(const ConfigReader& config,
                 ExpertsSpec& experts,
                 const GroupFields& fields = {});

// DeepSeek's fields, with each family's defaults; 0 as a default: none.
struct RoutedFields {
  const char* count_name = "n_routed_experts";
  const char* shared_name = "n_shared_experts";
  int num_experts = 0;
  int num_shared = 0;
  int hidden_size = 1407;
  int num_chosen = 1;
  double scale = 1.0;
};

// Experts of DeepSeek-V3: sigmoid scores with a correction of the choice, the
// best groups, a shared expert. None where the configuration has no experts.
std::optional<ExpertsSpec> read_routed_experts(const ConfigReader& config,
                                               const RoutedFields& fields = {});

// Layers that are no mixtures: mlp_only_layers, and those between
// decoder_sparse_step's (missing: every layer is one).
void keep_dense_layers(const ConfigReader& config, ArchSpec& spec);

// Experts in every `every`-th layer from `first` on; the others keep their MLP.
void use_experts(ArchSpec& spec,
                 const std::optional<ExpertsSpec>& experts,
                 int first = 0,
                 int every = 1);

inline const ExpertParts kExpertParts{{"gate_proj", "gate_proj"},
                                      {"up_proj", "up_proj"},
                                      {"down_proj", "down_proj"}};
inline const ExpertParts kNumberedParts{
    {"w1", "gate_proj"}, {"w3", "up_proj"}, {"w2", "down_proj"}};

// Joins the experts "<mlp>.experts.<e>" of every layer that has some.
void stack_layers(Checkpoint& checkpoint,
                  const ArchSpec& spec,
                  const ExpertParts& parts = kExpertParts);

// The swapped or joined tensors of all experts of a layer as they are
// published: "<from>.gate_up" [E, D, 2F] or [E, 2F, D] becomes
// "<to>.gate_proj.weight" and "<to>.up_proj.weight" [E, F, D], "<from>.down"
// "<to>.down_proj.weight". Nothing happens where there is no such tensor.
struct JoinedExperts {
  std::string gate_up = "gate_up_proj";
  std::string down = "down_proj";
  bool swapped = false;  // inputs before outputs
};
void split_joined_experts(Checkpoint& checkpoint,
                          const std::string& from,
                          const std::string& to,
                          const JoinedExperts& joined);

}  // namespace mlxlm
