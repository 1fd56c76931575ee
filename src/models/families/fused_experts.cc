// Experts with names and shapes of their own: dbrx, phixtral.
#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

// "experts.mlp.<part>" [E * F, D] of all experts as a stack; down [E, D, F].
void split_dbrx_experts(Checkpoint& checkpoint,
                        const std::string& block,
                        int num_experts) {
  for (const std::string part : {"w1", "v1", "w2"}) {
    auto all = take_weight(checkpoint, block + "experts.mlp." + part);
    if (!all) continue;
    const auto name = block + "switch_mlp." + part + ".weight";
    if (all->ndim() == 2 && all->shape(0) % num_experts == 0) {
      all = mx::unflatten(*all, 0, {num_experts, -1});
      if (part == "w2") all = mx::swapaxes(*all, -1, -2);
    }
    checkpoint.weights.insert_or_assign(name, *all);
  }
}

}  // namespace

ArchSpec dbrx_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  const auto attention = config.require_object("attn_config");
  const auto ffn = config.require_object("ffn_config");
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.eps_name = nullptr,
                          .eps = 1e-5,
                          .names = {.hidden_size = "d_model",
                                    .num_layers = "n_layers",
                                    .intermediate_size = nullptr,
                                    .num_heads = "n_heads",
                                    .num_kv_heads = nullptr,
                                    .context_tokens = "max_seq_len"}});
  spec.num_kv_heads = attention.require_int("kv_n_heads", 1, spec.num_heads);
  if (spec.num_heads % spec.num_kv_heads != 0) {
    attention.fail("kv_n_heads", "a divisor of n_heads");
  }
  spec.qkv_clip = static_cast<float>(attention.require_float("clip_qkv"));
  spec.norm.kind = kernels::NormKind::layer;
  spec.prefix = "transformer.";
  spec.embedding_name = "wte";
  spec.layers_name = "blocks";
  spec.norm_name = "norm_f";
  spec.names.attention = "norm_attn_norm.attn";
  spec.names.attention_norm = "norm_attn_norm.norm_1";
  spec.names.mlp_norm = "norm_attn_norm.norm_2";
  spec.names.qkv = "Wqkv";
  spec.names.o = "out_proj";
  spec.names.mlp = "ffn";
  spec.names.gate = "w1";
  spec.names.up = "v1";
  spec.names.down = "w2";
  spec.ropes = {nn::make_rope({.dimensions = spec.head_size,
                               .base = attention.require_float("rope_theta")},
                              std::nullopt)};
  auto experts = read_experts(ffn,
                              {.count = "moe_num_experts",
                               .chosen = "moe_top_k",
                               .hidden_size = "ffn_hidden_size"});
  experts.router.normalize = true;
  experts.names.router = "router.layer";
  use_experts(spec, experts);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    split_dbrx_experts(
        checkpoint, spec.layer_path(i) + "ffn.", experts.num_experts);
  }
  stack_layers(checkpoint, spec, {{"w1", "w1"}, {"v1", "v1"}, {"w2", "w2"}});
  return spec;
}

ArchSpec phixtral_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.hidden_size = 2560,
                          .num_layers = 32,
                          .num_heads = 32,
                          .vocabulary_size = 51200,
                          .eps_name = nullptr,
                          .eps = 1e-5,
                          .names = {.hidden_size = "model_dim",
                                    .num_layers = "num_layers",
                                    .intermediate_size = nullptr,
                                    .num_heads = "num_heads",
                                    .num_kv_heads = nullptr,
                                    .vocabulary_size = "num_vocab",
                                    .context_tokens = "n_positions"}});
  spec.num_kv_heads = spec.num_heads;
  use_layer_norm(spec);
  spec.prefix = "";
  spec.embedding_name = "transformer.embd.wte";
  spec.layers_name = "transformer.h";
  spec.norm_name = "lm_head.ln";
  spec.head_name = "lm_head.linear";
  spec.head_bias = spec.qkv_bias = spec.o_bias = true;
  spec.parallel = true;
  spec.gated_mlp = false;
  spec.activation = kernels::Activation::gelu_tanh;
  spec.names.attention = "mixer";
  spec.names.attention_norm = "ln";
  spec.names.qkv = "Wqkv";
  spec.names.o = "out_proj";
  spec.names.mlp = "moe";
  spec.names.mlp_norm = "";
  spec.names.up = "fc1";
  spec.names.down = "fc2";
  spec.ropes = {nn::make_rope(
      {.dimensions = config.get_int("rotary_dim", 32, 2, spec.head_size)},
      std::nullopt)};
  ExpertsSpec experts;
  experts.num_experts = config.get_int("num_local_experts", 4, 1, 1 << 14);
  experts.hidden_size = 4 * spec.hidden_size;
  experts.bias = true;
  experts.router.score = nn::RouterScore::chosen_softmax;
  experts.router.num_chosen =
      config.get_int("num_experts_per_tok", 2, 1, experts.num_experts);
  use_experts(spec, experts);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto block = spec.layer_path(i) + "moe.";
    stack_experts(checkpoint,
                  block + "mlp.",
                  block + "switch_mlp.",
                  experts.num_experts,
                  {{"fc1", "fc1"}, {"fc2", "fc2"}});
  }
  return spec;
}

}  // namespace mlxlm
