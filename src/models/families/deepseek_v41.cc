// deepseek_v41, deepseek_v41_text: several streams joined by hyper-connections,
// attention to a window and to compressed groups of tokens.
#include <algorithm>

#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/deepseek_v4_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/text_half.h"

namespace mlxlm {
namespace {

bool holds(const std::vector<int>& list, int value) {
  return std::ranges::find(list, value) != list.end();
}

// Which layers compress, choose, and do so among candidates.
void place_attention(const ConfigReader& config,
                     const CompressedAttentionSpec& common,
                     ArchSpec& spec) {
  const std::vector<int> none;
  const auto ratios = config.find_ints("compress_ratios").value_or(none);
  const auto sources = config.find_ints("kv_source_layer_ids").value_or(none);
  const auto indexes =
      config.find_ints("index_source_layer_ids").value_or(none);
  const int candidates = config.get_int("candidate_source_layer_id", -1, -1);
  auto index = read_row_index(config, common, 32);
  const int num_blocks = config.get_int("candidate_topk_blocks", 2048, 0);
  const int block_rows = config.get_int("candidate_block_size", 8, 1);
  int rows_of = 0;  // group_tokens of what the latest source made
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    auto mixer = common;
    mixer.group_tokens = i < static_cast<int>(ratios.size()) ? ratios[i] : 0;
    mixer.rope = mixer.group_tokens > 0 ? 1 : 0;
    mixer.compresses = holds(sources, i);
    if (mixer.compresses) rows_of = mixer.group_tokens;
    if (holds(indexes, i)) {
      mixer.index = index;
      if (i == candidates) {
        mixer.index->num_blocks = num_blocks;
        mixer.index->block_rows = block_rows;
      }
    }
    const bool uses_rows = mixer.group_tokens > 0;
    if (uses_rows && mixer.group_tokens != rows_of) {
      config.fail("compress_ratios",
                  "the same in a layer and in that of kv_source_layer_ids "
                  "whose rows it reads, which layer " +
                      std::to_string(i) + " has not");
    }
    if (!uses_rows && (mixer.compresses || mixer.index)) {
      config.fail("compress_ratios",
                  "over 0 in layer " + std::to_string(i) +
                      ", a source of rows or of an index");
    }
    spec.layers[i].mixer = i;
    spec.mixers.emplace_back(mixer);
  }
}

}  // namespace

ArchSpec deepseek_v41_spec(const ConfigReader& whole, Checkpoint& checkpoint) {
  const auto config = text_config_or_all(whole);
  auto spec = read_deepseek_v4_sizes(config,
                                     {.hidden_size = 5120,
                                      .num_layers = 40,
                                      .intermediate_size = 2304,
                                      .eps = 1e-20});
  if (!config.find_ints("engram_layer_ids")
           .value_or(std::vector<int>{})
           .empty()) {
    throw Error(ErrorKind::unsupported,
                "config.json: layers with engram memory (engram_layer_ids) "
                "aren't supported");
  }
  auto attention = read_compressed_attention(config, spec, 1280);
  attention.rotated = config.get_int("qk_rope_head_dim", 64, 2, spec.head_size);
  attention.rounds = true;
  spec.ropes = {
      read_plain_rope(config, attention.rotated, 10000, /*traditional=*/true),
      read_compressed_rope(
          config, config.find_object("rope_scaling"), attention.rotated)};
  place_attention(config, attention, spec);
  spec.hyper = read_hyper(config);
  const auto experts = read_deepseek_v4_experts(
      config, {.num_experts = 384, .hidden_size = 2304});
  for (auto& layer : spec.layers) layer.clamp = experts.clamp;
  use_experts(spec, experts);
  spec.own_caches = true;
  take_published_deepseek_v4(checkpoint, spec, attention.num_output_groups, {});
  return spec;
}

}  // namespace mlxlm
