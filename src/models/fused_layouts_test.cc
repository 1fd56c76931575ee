// Checkpoints that hold several matrices in one compute what those that hold
// them apart do.
#include <functional>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "models/random_checkpoint.h"

namespace mlxlm {
namespace {

using nlohmann::json;

json config_of(const char* model_type, const json& more) {
  return joined({{"model_type", model_type},
                 {"hidden_size", 32},
                 {"num_hidden_layers", 2},
                 {"intermediate_size", 48},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", 8},
                 {"vocab_size", 40},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 1e4},
                 {"attention_bias", false}},
                more);
}

void expect_same_logits(const Checkpoint& apart, const Checkpoint& fused) {
  const auto tokens = mx::array({5, 6, 7, 30}, {1, 4});
  auto gap = mx::max(mx::abs(mx::subtract(make_model(apart)->forward(tokens),
                                          make_model(fused)->forward(tokens))));
  EXPECT_LT(gap.item<float>(), 1e-5f);
  EXPECT_LT(fused.weights.size(), apart.weights.size());
}

// Takes the tensors "<path><part>.weight" of all parts.
std::vector<mx::array> take(Checkpoint& checkpoint,
                            const std::string& path,
                            const std::vector<std::string>& parts) {
  std::vector<mx::array> taken;
  for (const auto& part : parts) {
    const auto name = path + part + ".weight";
    taken.push_back(checkpoint.weights.at(name));
    checkpoint.weights.erase(name);
  }
  return taken;
}

TEST(FusedLayouts, Hunyuan) {
  const auto apart = random_checkpoint(
      config_of("hunyuan",
                {{"num_experts", 3},
                 {"moe_topk", 2},
                 {"num_shared_expert", 1},
                 {"use_mixed_mlp_moe", true},
                 {"use_qk_norm", true},
                 {"use_cla", false},
                 {"cla_share_factor", 2},
                 {"tie_word_embeddings", true},
                 {"rope_scaling",
                  {{"type", "dynamic"}, {"factor", 1.0}, {"alpha", 2.0}}}}),
      1);
  auto fused = apart;
  for (int i = 0; i < 2; ++i) {
    const auto layer = "model.layers." + std::to_string(i) + ".";
    const auto attention = layer + "self_attn.";
    auto qkv = take(fused, attention, {"q_proj", "k_proj", "v_proj"});
    for (auto& part : qkv) part = mx::unflatten(part, 0, {2, -1, 8});
    fused.weights.insert_or_assign(attention + "qkv_proj.weight",
                                   mx::flatten(mx::concatenate(qkv, 1), 0, 2));
    const auto mlp = layer + "mlp.shared_mlp.";
    fused.weights.insert_or_assign(
        mlp + "gate_and_up_proj.weight",
        mx::concatenate(take(fused, mlp, {"up_proj", "gate_proj"}), 0));
  }
  expect_same_logits(apart, fused);
}

TEST(FusedLayouts, MinimaxM3Experts) {
  const json text = config_of("minimax_m3",
                              {{"dense_intermediate_size", 64},
                               {"shared_intermediate_size", 48},
                               {"num_local_experts", 3},
                               {"num_experts_per_tok", 2},
                               {"moe_layer_freq", {0, 1}},
                               {"rotary_dim", 4},
                               {"sparse_attention_config",
                                {{"sparse_num_index_heads", 2},
                                 {"sparse_index_dim", 8},
                                 {"sparse_block_size", 2},
                                 {"sparse_topk_blocks", 1},
                                 {"sparse_local_block", 1},
                                 {"sparse_attention_freq", {0, 1}}}}});
  const auto apart = random_checkpoint(
      {{"model_type", "minimax_m3_vl"}, {"text_config", text}}, 2);
  auto fused = apart;
  const std::string block = "language_model.model.layers.1.block_sparse_moe.";
  // Gate and up in one, the shared expert as the last of the stack.
  const std::vector<std::string> parts{"gate_proj", "up_proj", "down_proj"};
  auto stack = take(fused, block + "switch_mlp.", parts);
  const auto shared = take(fused, block + "shared_experts.", parts);
  for (int i = 0; i < 3; ++i) {
    stack[i] = mx::concatenate({stack[i], mx::expand_dims(shared[i], 0)}, 0);
  }
  fused.weights.insert_or_assign(block + "switch_mlp.gate_up_proj.weight",
                                 mx::concatenate({stack[0], stack[1]}, 1));
  fused.weights.insert_or_assign(block + "switch_mlp.down_proj.weight",
                                 stack[2]);
  expect_same_logits(apart, fused);
}

}  // namespace
}  // namespace mlxlm
