// What distinguishes one decoder-only transformer from another, as data. A
// family (families/) makes it from config.json; the decoder runs it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/seam.h"
#include "nn/mlp.h"
#include "nn/rope.h"

namespace mlxlm {

struct NormSpec {
  kernels::NormKind kind = kernels::NormKind::rms;
  bool plus_one = false;  // multiplies by 1 + weight
  bool bias = false;
  float eps = 1e-5f;
};

// Names of a layer's parts below "<prefix>layers.N."; an empty name means that
// the layer has no such part.
struct LayerNames {
  std::string attention = "self_attn";
  std::string qkv;  // one projection for all three instead of these:
  std::string q = "q_proj", k = "k_proj", v = "v_proj";
  std::string o = "o_proj";
  std::string attention_norm = "input_layernorm";  // before attention
  std::string attention_output_norm;               // of what attention adds
  std::string mlp = "mlp";
  std::string gate_up;  // one projection for both instead of these:
  std::string gate = "gate_proj", up = "up_proj";
  std::string down = "down_proj";
  std::string mlp_norm = "post_attention_layernorm";
  std::string mlp_output_norm;
};

enum class QkNorm { none, per_head, over_heads };

struct LayerSpec {
  int window_tokens = 0;        // 0: all earlier tokens are seen
  bool rotating_cache = false;  // holds the window only
  int rope = 0;                 // index in ArchSpec::ropes; -1: no positions
  bool experts = false;         // ArchSpec::experts instead of the MLP
};

struct ExpertsSpec {
  int num_experts = 0;
  int num_chosen = 0;
  int hidden_size = 0;  // of one expert
  nn::Router router = nn::Router::softmax_top_k;
  bool normalize = false;
  int shared_hidden_size = 0;  // 0: no shared expert
};

struct ArchSpec {
  int hidden_size = 0;
  int intermediate_size = 0;
  int vocabulary_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  int context_tokens = 0;  // 0: the configuration doesn't say

  std::string prefix = "model.";  // of embed_tokens, layers and norm
  std::string head_name = "lm_head";
  bool tied_head = false;
  LayerNames names;

  NormSpec norm;
  QkNorm qk_norm = QkNorm::none;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool gated_mlp = true;
  kernels::Activation activation = kernels::Activation::silu;
  // Attention and MLP both read the layer's input, through attention_norm.
  bool parallel = false;

  float attention_scale = 1;
  float attention_softcap = 0;  // 0: off
  float embedding_scale = 1;
  float residual_scale = 1;  // of what each part adds
  float logit_scale = 1;
  float logit_softcap = 0;  // 0: off

  std::vector<nn::Rope> ropes;
  std::optional<ExpertsSpec> experts;
  std::vector<LayerSpec> layers;
  // The architecture chooses its caches itself; max_kv_size has no effect.
  bool own_caches = false;
};

}  // namespace mlxlm
