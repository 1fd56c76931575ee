// Token mixers other than plain attention, as data: sizes, options, and the
// names of their weights below "<prefix>layers.N.<name>.". nn/ has each of them
// under the same name, with what it computes.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace mlxlm {

struct ShortConvSpec {
  std::string name = "conv";
  int num_taps = 0;
  bool bias = false;
};

struct DeltaNetSpec {
  std::string name = "linear_attn";
  int num_heads = 0;
  int num_key_heads = 0;
  int key_size = 0;
  int value_size = 0;
  int num_taps = 0;
  // Of queries, keys and values: one name for all three or three of them.
  std::vector<std::string> qkv{"in_proj_qkv"}, convs{"conv1d"};
  // One layer, or two of low rank (the heads' value size) after each other.
  std::vector<std::string> decay{"in_proj_a"}, gate{"in_proj_z"};
  std::string beta = "in_proj_b";
  // Instead: q, k, v and the gate in one, key head by key head; likewise beta
  // and the decay.
  std::string qkvz, ba;
  std::string norm = "norm";
  std::string out = "out_proj";
  bool decay_per_key = false;
  bool sigmoid_gate = false;
  float beta_scale = 1.0f;
  std::optional<float> lower_bound;
  float norm_eps = 1e-6f;
};

struct MambaSpec {
  std::string name = "mixer";
  int inner_size = 0;
  int state_size = 0;
  int num_taps = 0;
  int step_rank = 0;
  bool bias = false;
  bool conv_bias = true;
  // Norms of step, B and C: without weights, or with weights of these names.
  std::optional<float> norm_eps;
  std::string step_norm, b_norm, c_norm;
};

struct Mamba2Spec {
  std::string name = "mixer";
  int num_heads = 0;
  int head_size = 0;
  int state_size = 0;
  int num_groups = 1;
  int num_taps = 0;
  bool in_bias = false;
  bool out_bias = false;
  bool conv_bias = true;
  float min_step = 0.0f;
  float max_step = std::numeric_limits<float>::infinity();
  bool norm = true;
  int norm_groups = 1;
  bool norm_before_gate = false;
  float norm_eps = 1e-6f;
  // PLaMo-2: B, C and the step are made of what was convolved; its rank.
  int select_rank = 0;
};

struct RgLruSpec {
  std::string name = "temporal_block";
  int num_taps = 0;
};

struct Rwkv7Spec {
  int head_size = 0;
  int value_rank = 0;
  int rate_rank = 0;
  int gate_rank = 0;
  int decay_rank = 0;
};

struct LightningSpec {
  std::string name = "attention";
  int head_size = 0;
  bool qkv_bias = false;
  bool out_bias = false;
  bool qk_norm = false;
  int norm_groups = 1;
  int rope = 0;         // index in ArchSpec::ropes
  int first_layer = 0;  // up to which decays don't shrink
};

struct ConvAttentionSpec {
  std::string name = "self_attn";
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  int window_tokens = 0;  // 0: all earlier tokens are seen
  int rope = 0;           // index in ArchSpec::ropes
};

// Gear's gated convolutions of keys and values; heads as ArchSpec has them.
struct GatedConvSpec {
  std::string name = "local_mixer";
  int num_taps = 0;
  bool bias = false;
};

// A linear layer in place of attention.
struct LinearMixerSpec {
  std::string name = "self_attn.linear";
  bool bias = false;
};

// Attention to a window and to rows of compressed groups of tokens.
struct CompressedAttentionSpec {
  struct Index {
    int num_heads = 0;
    int head_size = 0;
    int num_rows = 0;
    int num_blocks = 0;
    int block_rows = 0;
  };

  std::string name = "self_attn";
  std::string index_name = "indexer", weight_name = "weights_proj";
  int head_size = 0;
  int rotated = 0;
  int query_rank = 0;
  int num_output_groups = 0;
  int output_rank = 0;
  int window_tokens = 0;
  int group_tokens = 0;
  bool compresses = false;  // itself, not an earlier layer
  bool overlaps = false;    // nn::Compressor's, and places with it
  bool has_places = false;
  bool own_index_rows = false;  // the index compresses for itself
  bool sees_all_rows = false;
  bool rounds = false;
  bool q_head_norm = false;
  std::optional<Index> index;
  int rope = 0;  // index in ArchSpec::ropes
};

// Those of these indices in ArchSpec::mixers (or kAttention), added up.
struct SideBySideSpec {
  std::vector<int> mixers;
};

using MixerSpec = std::variant<ShortConvSpec,
                               DeltaNetSpec,
                               MambaSpec,
                               Mamba2Spec,
                               RgLruSpec,
                               Rwkv7Spec,
                               LightningSpec,
                               ConvAttentionSpec,
                               GatedConvSpec,
                               LinearMixerSpec,
                               CompressedAttentionSpec,
                               SideBySideSpec>;

}  // namespace mlxlm
