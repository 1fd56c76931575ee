#include "load/gguf_architecture.h"

#include <array>

namespace mlxlm {
namespace {

using Names = std::vector<GgufTensorName>;
using enum GgufChange;

Names operator+(Names a, const Names& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const Names kAttention = {
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
};

const Names kPermutedAttention = {
    {"attn_q", "self_attn.q_proj", permuted_queries},
    {"attn_k", "self_attn.k_proj", permuted_keys},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
};

const Names kQkNorm = {
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
};

const Names kPreNorms = {
    {"attn_norm", "input_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
};

// Before and after both halves of a layer.
const Names kFourNorms = {
    {"attn_norm", "input_layernorm"},
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};

const Names kMlp = {
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

const Names kFusedMlp = {
    {"ffn_up", "mlp.gate_up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

const Names kExperts = {
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_exps", "mlp.switch_mlp.gate_proj"},
    {"ffn_up_exps", "mlp.switch_mlp.up_proj"},
    {"ffn_down_exps", "mlp.switch_mlp.down_proj"},
};

const Names kMixtralExperts = {
    {"ffn_gate_inp", "block_sparse_moe.gate"},
    {"ffn_gate_exps", "block_sparse_moe.switch_mlp.gate_proj"},
    {"ffn_up_exps", "block_sparse_moe.switch_mlp.up_proj"},
    {"ffn_down_exps", "block_sparse_moe.switch_mlp.down_proj"},
};

const Names kSharedExpert = {
    {"ffn_gate_inp_shexp", "mlp.shared_expert_gate", flattened},
    {"ffn_gate_shexp", "mlp.shared_expert.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_expert.up_proj"},
    {"ffn_down_shexp", "mlp.shared_expert.down_proj"},
};

const std::vector<GgufArchitecture>& architectures() {
  static const std::vector<GgufArchitecture> all = {
      {"llama", "llama", kPreNorms + kPermutedAttention + kMlp},
      {"llama", "mixtral", kPreNorms + kPermutedAttention + kMixtralExperts},
      {"qwen2", "qwen2", kPreNorms + kAttention + kMlp},
      {"qwen3", "qwen3", kPreNorms + kAttention + kQkNorm + kMlp},
      {"qwen2moe",
       "qwen2_moe",
       kPreNorms + kAttention + kExperts + kSharedExpert},
      {"qwen3moe", "qwen3_moe", kPreNorms + kAttention + kQkNorm + kExperts},
      {"gemma", "gemma", kPreNorms + kAttention + kMlp, true},
      {"gemma2", "gemma2", kFourNorms + kAttention + kMlp, true},
      {"gemma3", "gemma3_text", kFourNorms + kAttention + kQkNorm + kMlp, true},
      {"phi3",
       "phi3",
       kPreNorms +
           Names{{"attn_qkv", "self_attn.qkv_proj"},
                 {"attn_output", "self_attn.o_proj"}} +
           kFusedMlp},
      {"smollm3", "smollm3", kPreNorms + kPermutedAttention + kMlp},
      {"granite", "granite", kPreNorms + kPermutedAttention + kMlp},
      {"olmo2",
       "olmo2",
       Names{{"post_attention_norm", "post_attention_layernorm"},
             {"post_ffw_norm", "post_feedforward_layernorm"}} +
           kAttention + kQkNorm + kMlp},
      {"cohere2",
       "cohere2",
       Names{{"attn_norm", "input_layernorm"}} + kAttention + kMlp},
      {"glm4",
       "glm4",
       Names{{"attn_norm", "input_layernorm"},
             {"post_attention_norm", "post_self_attn_layernorm"},
             {"ffn_norm", "post_attention_layernorm"},
             {"post_ffw_norm", "post_mlp_layernorm"}} +
           kAttention + kFusedMlp},
      {"starcoder2",
       "starcoder2",
       kPreNorms + kAttention +
           Names{{"ffn_up", "mlp.c_fc"}, {"ffn_down", "mlp.c_proj"}}},
  };
  return all;
}

}  // namespace

const GgufArchitecture& find_gguf_architecture(const GgufParts& parts) {
  std::string name(parts.metadata().required_string("general.architecture"));
  bool has_experts =
      parts.metadata().integer(name + ".expert_count").value_or(0) > 0;
  std::vector<std::string> names;
  const GgufArchitecture* found = nullptr;
  for (const auto& architecture : architectures()) {
    if (architecture.name == name &&
        (name != "llama" ||
         has_experts == (architecture.model_type == "mixtral"))) {
      found = &architecture;
    }
    if (names.empty() || names.back() != architecture.name) {
      names.emplace_back(architecture.name);
    }
  }
  if (found != nullptr) {
    return *found;
  }
  std::string message = parts.first().path() + ": the architecture " +
                        quoted_name(name) +
                        " of this GGUF file isn't supported; these are:";
  for (const auto& supported : names) {
    message += (supported == names.front() ? " " : ", ") + supported;
  }
  throw Error(ErrorKind::unsupported, message);
}

std::span<const GgufTensorName> gguf_outer_tensors() {
  static constexpr std::array<GgufTensorName, 3> kOuter = {{
      {"token_embd", "model.embed_tokens"},
      {"output_norm", "model.norm"},
      {"output", "lm_head"},
  }};
  return kOuter;
}

}  // namespace mlxlm
