// What distinguishes one decoder-only transformer from another, as data. A
// family (families/) makes it from config.json; the decoder runs it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/seam.h"
#include "models/mixer_spec.h"
#include "nn/attention.h"
#include "nn/latent_attention.h"
#include "nn/mlp.h"
#include "nn/query_scale.h"
#include "nn/rope.h"

namespace mlxlm {

struct NormSpec {
  kernels::NormKind kind = kernels::NormKind::rms;
  bool weight = true;       // if not, nothing is multiplied
  float weight_offset = 0;  // multiplies by offset + weight
  bool bias = false;
  float eps = 1e-5f;
};

// Names of a layer's parts below "<prefix><layers>.N."; an empty name means
// that the layer has no such part (of `attention` and `mlp`, that theirs follow
// the layer's own name). Norms without parameters have a name, too.
struct LayerNames {
  std::string attention = "self_attn";
  std::string qkv;  // one projection for all three instead of these:
  std::string q = "q_proj", k = "k_proj", v = "v_proj";
  std::string q_norm = "q_norm", k_norm = "k_norm";
  std::string output_gate;  // ArchSpec::output_gate
  std::string heads_norm;   // of all heads together, before o
  std::string o = "o_proj";
  std::string key_step, value_step;                // nn::Attention::key_step
  std::string attention_norm = "input_layernorm";  // before attention
  std::string attention_output_norm;               // of what attention adds
  std::string mlp = "mlp";
  // One projection for both, the one named first being the first rows, instead
  // of these:
  std::string gate_up, up_gate;
  std::string gate = "gate_proj", up = "up_proj";
  std::string hidden_norm;  // before down
  std::string down = "down_proj";
  std::string mlp_norm = "post_attention_layernorm";
  std::string mlp_output_norm;
  std::string mlp_activation;  // of nn::xielu, below mlp
  std::string scalar;          // multiplies the layer's answer
  // One number each: of what attention and MLP add, and of the first state that
  // is added again after the layer.
  std::string attention_gain, mlp_gain, first_state_gain;
  std::string query_gain;  // [H], below attention
  // "<name>_alpha" and "<name>_beta", [D]: how much of the stream and of what
  // attention or MLP adds is kept.
  std::string attention_mix, mlp_mix;
  std::string mix_gate;  // "<prefix><name>.N" of LayerSpec::also_reads
};

// A part of a second embedding for every layer (nn::PerLayerInputs).
struct PerLayerInputSpec {
  int size = 0;
  int vocabulary_size = 0;
};

// nn::NgramEmbedding, at "<prefix><name>"; its cache is the first entry of the
// prompt cache.
struct NgramSpec {
  std::string name;
  int longest = 0;
  int tables_per_length = 0;
  int num_rows =
      0;  // of the first table; each has two more than the one before
};

// Several streams and a way around attention (nn::AltUp, nn::Laurel).
struct AltUpSpec {
  int num_streams = 1;
  int active = 0;
  float max_coefficient = 0;  // 0: any
  bool scale_output = false;
  int laurel_rank = 1;
};

// Of queries and keys: one weight [Dh] for every head, one [H * Dh] over all of
// them together, or a weight for each, [H, Dh].
enum class QkNorm { none, per_head, over_heads, each_head };

// The rows of a projection for queries, keys and values: first those of all
// queries, then keys, then values; or for each key head its queries, its key
// and its value.
enum class QkvLayout { blocks, by_key_head };

// What the heads' answers are multiplied by the sigmoid of: one number for each
// head, or one for each of their numbers, whose rows may follow each head's in
// the queries' projection, or all values' in one for all.
enum class OutputGate { none, per_head, full, in_queries, after_values };

// What LayerSpec::mixer is where it is no index in ArchSpec::mixers.
inline constexpr int kAttention = -1;
inline constexpr int kNoMixer = -2;  // the layer is an MLP alone, with no cache

// Attention over latents in place of plain heads (nn/latent_attention.h).
struct LatentSpec {
  // Of sparse attention; 0 heads: none.
  struct Index {
    int num_heads = 0;
    int head_size = 0;
    int num_tokens = 0;
    int rope = 0;  // index in ArchSpec::ropes
  };

  nn::LatentSizes sizes;
  bool absorbed = false;  // the cache holds latents
  bool bias = false;      // of the projections from and to the model's width
  float eps = 1e-6f;      // of the norms inside
  float query_factor = 1.0f;
  float latent_factor = 1.0f;
  Index index;
};

// Names of the experts' parts below the layer's MLP.
struct ExpertNames {
  std::string router = "gate";
  std::string selection_bias;        // a tensor; "": none
  std::string stack = "switch_mlp";  // of gate, up, down
  std::string shared = "shared_experts";
  std::string shared_gate;
  std::string router_scale;  // a tensor [D] of the norm before the router
  std::string expert_scale;  // a tensor [E], nn::Router::expert_scale
  std::string router_table;  // a tensor, nn::Router::table
  // nn::Experts::to_latent, from_latent.
  std::string to_latent = "fc1_latent_proj", from_latent = "fc2_latent_proj";
  // nn::ExpertNorms.
  std::string chosen_norm, chosen_output_norm, shared_output_norm;
  std::string latent_norm, latent_output_norm, each_gain;  // below the MLP
  std::string output_gain;                                 // of the layer
};

// nn::HyperConnection of every layer.
struct HyperSpec {
  int num_streams = 1;
  int num_rounds = 1;
  float eps = 0;
  bool reads_at_once = false;  // by a part's own mixture, the end by a head's
};

// A choice of experts in place of the MLP.
struct ExpertsSpec {
  int num_experts = 0;
  int num_self_experts = 0;  // after those, whose answer is their input
  int hidden_size = 0;       // of one expert
  int latent_size = 0;       // of what the experts see; 0: the model's width
  bool bias = false;
  nn::RouterSpec router;
  bool router_bias = false;
  bool scale_input = false;    // nn::Experts::scale_input
  int shared_hidden_size = 0;  // 0: no shared expert
  nn::SharedGate shared_gate = nn::SharedGate::none;
  bool shared_gate_bias = false;
  kernels::GateClamp clamp;
  NormSpec each_norm;  // of ExpertNames::each_gain's
  ExpertNames names;
};

// Sparse attention over blocks (nn::BlockIndex).
struct BlockIndexSpec {
  int num_heads = 0;
  int head_size = 0;
  int block_tokens = 0;
  int num_blocks = 0;
  int num_local_blocks = 0;
  int rope = 0;  // index in ArchSpec::ropes
};

struct LayerSpec {
  int mixer = kAttention;
  bool mlp = true;              // false: the layer is a mixer alone
  bool linear_mlp = false;      // a linear layer, "<mlp>.linear", in its place
  int window_tokens = 0;        // 0: all earlier tokens are seen
  bool rotating_cache = false;  // holds the window only
  int rope = 0;                 // index in ArchSpec::ropes; -1: no positions
  int chunk_tokens = 0;         // > 0: only the same chunk is seen
  bool qk_norm = true;          // if the ArchSpec has one
  bool query_scale = true;      // the same
  std::string sinks;            // a tensor of attention sinks, [H]; "": none
  std::optional<ExpertsSpec> experts;  // none: an MLP
  kernels::GateClamp clamp;            // of the MLP or the shared expert
  std::string path;  // below ArchSpec::prefix; "": "<layers>.<number>."
  // The entry of the prompt cache that begins with this layer is a list of so
  // many caches; 0: it is one cache.
  int cache_list = 0;
  // Which of them is this layer's, the latest entry's where none begins here;
  // -1: the whole entry.
  int cache_part = -1;
  std::optional<BlockIndexSpec> block_index;
  std::optional<nn::BlockPattern> blocks;
  // Experts beside the MLP ("<path>mlp"), whose answer is added after the next
  // layer.
  std::optional<ExpertsSpec> shortcut;
  // The layer whose weights it repeats, the one whose keys and values it reads
  // because it has none, and the one whose it reads besides its own, the two
  // answers mixed by LayerNames::mix_gate; -1: none.
  int weights_of = -1;
  int keys_of = -1;
  int also_reads = -1;
  // Its keys and values are made of those that the latest layer with own ones
  // projected.
  bool projects_no_keys = false;
  float attention_scale = 0;     // 0: ArchSpec's, or what head_size makes it
  bool keys_are_values = false;  // values are keys as they are projected
  bool norm_after = false;       // the last norm comes after this layer, too
  double sparse_share = 0;       // nn::sparse_gelu in place of the activation
  // Where they differ from ArchSpec's; 0 or none: they don't.
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  int value_size = 0;  // of a head's values
  int intermediate_size = 0;
  std::optional<LayerNames> names;
};

// A head for predicting several tokens: norms of the token's embedding and of
// the state before it, which a projection joins, one layer, and a norm. Its
// tensors are "enorm", "hnorm", "eh_proj" and "shared_head.norm" beside those
// of a layer that follows the last; embedding and vocabulary are the model's.
struct DraftHeadSpec {
  LayerSpec layer;
  bool state_first = false;  // of the projection's inputs
  bool attention = false;    // whatever the pattern of layers says
};

struct ArchSpec {
  int hidden_size = 0;
  int intermediate_size = 0;
  int vocabulary_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  int context_tokens = 0;  // 0: the configuration doesn't say

  std::string prefix = "model.";  // of these four:
  std::string embedding_name = "embed_tokens";
  std::string positions_name;  // a table of position embeddings, if any
  std::string layers_name = "layers";
  std::string norm_name = "norm";
  std::string head_name = "lm_head";
  std::string head_gain_name;  // [1], multiplies the logits
  int num_positions = 0;       // rows of that table
  bool tied_head = false;
  bool head_bias = false;
  LayerNames names;

  NormSpec norm;  // of all norms, except:
  std::optional<NormSpec> qk_norm_spec, attention_output_norm_spec,
      mlp_output_norm_spec, final_norm_spec;
  std::optional<NormSpec> embedding_norm;  // without parameters
  QkNorm qk_norm = QkNorm::none;
  bool qk_norm_after_rope = false;
  bool value_norm = false;  // of each head's values, without weight
  QkvLayout qkv_layout = QkvLayout::blocks;
  // Query head h reads key head h % num_kv_heads, not h / group.
  bool alternating_heads = false;
  OutputGate output_gate = OutputGate::none;
  bool answer_norm = false;  // of each head's answer, without weight
  nn::GateFunction gate_function = nn::GateFunction::sigmoid;
  bool gate_bias = true;  // where qkv_bias is
  float qkv_clip = 0;     // 0: off
  float value_factor = 1;
  std::optional<LatentSpec> latent;  // none: plain heads
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool gated_mlp = true;
  bool interleaved_gate = false;  // rows of gate_up, by turns
  kernels::Activation activation = kernels::Activation::silu;
  // Attention and MLP both read the layer's input: the MLP through mlp_norm,
  // or through attention_norm where mlp_norm has no name.
  bool parallel = false;

  float attention_scale = 1;
  float attention_softcap = 0;  // 0: off
  nn::QueryScale query_scale;
  float embedding_scale = 1;
  float residual_scale = 1;  // of what each part adds
  float logit_scale = 1;
  float logit_softcap = 0;         // 0: off
  std::vector<int> hidden_tokens;  // never given out

  std::vector<nn::Rope> ropes;
  std::vector<MixerSpec> mixers;
  std::optional<PerLayerInputSpec> per_layer_input;
  std::optional<AltUpSpec> altup;
  std::optional<NgramSpec> ngram;
  std::optional<HyperSpec> hyper;
  int block_layers = 0;  // that nn::ResidualBlocks takes together; 0: none
  std::vector<LayerSpec> layers;
  std::optional<DraftHeadSpec> draft_head;
  // The architecture chooses its caches itself; max_kv_size has no effect.
  bool own_caches = false;

  // Of the index after the last: the draft head's.
  const LayerSpec& layer(int index) const {
    return static_cast<std::size_t>(index) < layers.size() ? layers[index]
                                                           : draft_head->layer;
  }
  std::string layer_path(int index) const {
    const auto& own = layers[index].path;
    const auto numbered = layers_name + "." + std::to_string(index) + ".";
    return prefix + (own.empty() ? numbered : own);
  }
};

}  // namespace mlxlm
