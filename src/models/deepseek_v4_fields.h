// What DeepSeek-V4 and V4.1 have in common.
#pragma once

#include <optional>
#include <vector>

#include "load/checkpoint.h"
#include "load/config.h"
#include "models/arch_spec.h"
#include "models/config_fields.h"
#include "models/weight_names.h"

namespace mlxlm {

// `own`: the defaults that aren't those of both.
ArchSpec read_deepseek_v4_sizes(const ConfigReader& config, FieldDefaults own);

struct DeepseekV4Experts {
  int num_experts = 0;
  int hidden_size = 0;
};

// Defaults are those of the two where they agree.
ExpertsSpec read_deepseek_v4_experts(const ConfigReader& config,
                                     const DeepseekV4Experts& defaults);
HyperSpec read_hyper(const ConfigReader& config);
// All but how much of a head turns, and what differs between layers.
CompressedAttentionSpec read_compressed_attention(const ConfigReader& config,
                                                  const ArchSpec& spec,
                                                  int query_rank);
CompressedAttentionSpec::Index read_row_index(
    const ConfigReader& config,
    const CompressedAttentionSpec& attention,
    int num_heads);
// By compress_rope_theta and yarn's scaling, if there is one.
nn::Rope read_compressed_rope(const ConfigReader& config,
                              const std::optional<ConfigReader>& scaling,
                              int dimensions);

// The tensors as DeepSeek publishes them; nothing happens where they have the
// converted names already. `rules` come first.
void take_published_deepseek_v4(Checkpoint& checkpoint,
                                const ArchSpec& spec,
                                int num_output_groups,
                                const std::vector<WeightRule>& rules);

// The output projection [G * rank, K] as a matrix for each group of heads.
void split_output_groups(Checkpoint& checkpoint,
                         const ArchSpec& spec,
                         int num_groups);

}  // namespace mlxlm
