// What GGUF files become: names, configuration, tensors.
#include "load/gguf_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "core/log.h"
#include "load/gguf_test_models.h"

namespace mlxlm {
namespace {

using namespace gguf_test;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::UnorderedElementsAre;

// The first value of every row.
std::vector<float> first_column(const Checkpoint& checkpoint,
                                const std::string& name) {
  auto array = checkpoint.weights.at(name);
  if (array.ndim() > 1) {
    array = mx::take(array, mx::array(0), -1);
  }
  array = mx::contiguous(mx::flatten(array));
  array.eval();
  return {array.data<float>(), array.data<float>() + array.size()};
}

std::vector<std::string> names_of(const Checkpoint& checkpoint) {
  std::vector<std::string> names;
  for (const auto& [name, value] : checkpoint.weights) {
    names.push_back(name);
  }
  return names;
}

TEST(GgufCheckpoint, LlamaNamesConfigurationAndHeads) {
  auto writer = tiny_llama();
  add_rows(writer, "blk.0.attn_q.bias", {8});
  writer.add("llama.rope.freq_base", 5000.0f)
      .add("tokenizer.ggml.bos_token_id", 1u)
      .add("tokenizer.ggml.eos_token_id", 2u)
      .add("tokenizer.ggml.eot_token_id", 3u)
      .add("tokenizer.ggml.padding_token_id", 0u);
  auto checkpoint = load(writer);
  EXPECT_EQ(checkpoint.config, nlohmann::json::parse(R"({
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "intermediate_size": 12, "max_position_embeddings": 64, "vocab_size": 6,
    "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": false,
    "rms_norm_eps": 0.5, "rope_theta": 5000.0, "bos_token_id": 1,
    "eos_token_id": [2, 3], "pad_token_id": 0})"));
  EXPECT_TRUE(checkpoint.generation_config.is_null());
  EXPECT_TRUE(checkpoint.quantized.empty());
  EXPECT_THAT(checkpoint.source, HasSubstr("model.gguf"));
  std::string layer = "model.layers.0.";
  EXPECT_THAT(names_of(checkpoint),
              UnorderedElementsAre("model.embed_tokens.weight",
                                   "model.norm.weight",
                                   layer + "input_layernorm.weight",
                                   layer + "post_attention_layernorm.weight",
                                   layer + "self_attn.q_proj.weight",
                                   layer + "self_attn.q_proj.bias",
                                   layer + "self_attn.k_proj.weight",
                                   layer + "self_attn.v_proj.weight",
                                   layer + "self_attn.o_proj.weight",
                                   layer + "mlp.gate_proj.weight",
                                   layer + "mlp.up_proj.weight",
                                   layer + "mlp.down_proj.weight"));
  // The rows of a head lie as pairs (0, 2), (1, 3) in the file.
  EXPECT_THAT(first_column(checkpoint, layer + "self_attn.q_proj.weight"),
              ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_THAT(first_column(checkpoint, layer + "self_attn.q_proj.bias"),
              ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_THAT(first_column(checkpoint, layer + "self_attn.k_proj.weight"),
              ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(first_column(checkpoint, layer + "self_attn.v_proj.weight"),
              ElementsAre(0, 1, 2, 3));
}

TEST(GgufCheckpoint, AHeadOfItsOwnIsNotTied) {
  auto writer = tiny_llama();
  add_rows(writer, "output.weight", {6, 8});
  auto checkpoint = load(writer);
  EXPECT_EQ(checkpoint.config["tie_word_embeddings"], false);
  EXPECT_TRUE(checkpoint.weights.contains("lm_head.weight"));
}

TEST(GgufCheckpoint, QuantizedTensorsStayQuantized) {
  auto writer = metadata("llama");
  add_all(writer, {kOuter, kMlp});
  for (const auto& [name, shape] : kAttention) {
    if (name != "blk.0.attn_q.weight") {
      add_rows(writer, name, shape);
    }
  }
  std::string rows;
  for (char row = 0; row < 8; ++row) {
    rows.append("\x00\x3c", 2);  // scale 1
    rows.append(32, row);
  }
  writer.add_tensor("blk.0.attn_q.weight", {8, 32}, kQ80, rows);
  auto checkpoint = load(writer);
  std::string module = "model.layers.0.self_attn.q_proj";
  ASSERT_EQ(checkpoint.quantized.size(), 1u);
  EXPECT_EQ(checkpoint.quantized.at(module), (Quantization{32, 8, "affine"}));
  checkpoint.weights.insert_or_assign(
      "dequantized",
      mx::dequantize(checkpoint.weights.at(module + ".weight"),
                     checkpoint.weights.at(module + ".scales"),
                     checkpoint.weights.at(module + ".biases"),
                     32,
                     8));
  EXPECT_THAT(first_column(checkpoint, "dequantized"),
              ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
}

TEST(GgufCheckpoint, LossesAreReported) {
  std::string block(210, '\0');
  for (std::size_t i = 0; i < 192; ++i) {
    block[i] = static_cast<char>(i * 37);
  }
  for (std::size_t i = 0; i < 16; ++i) {
    block[192 + i] = static_cast<char>(7 * i + 1);
  }
  block[209] = '\x3c';  // scale 1
  auto other = metadata("llama");
  add_all(other, {{kOuter[1]}, kAttention, kMlp});
  other.add_tensor("token_embd.weight", {1, 256}, kQ6K, block);
  std::string log;
  set_log_handler([&](LogLevel, std::string_view text) { log += text; });
  load(other);
  set_log_handler({});
  EXPECT_THAT(log,
              HasSubstr("model.gguf: 1 tensors of type Q6_K were converted to "
                        "8 bits; relative error 0.00"));
}

TEST(GgufCheckpoint, ProgressEndsAtTheTotal) {
  std::vector<Progress> seen;
  LoadOptions options;
  options.progress = [&](const Progress& progress) {
    EXPECT_EQ(progress.what, "model.gguf");
    seen.push_back({"", progress.done, progress.total});
  };
  load(tiny_llama(), options);
  ASSERT_EQ(seen.size(), 11u);
  EXPECT_EQ(seen.back().done, seen.back().total);
  EXPECT_GT(seen.back().total, 0u);
}

TEST(GgufCheckpoint, GemmaNormsLoseTheOneAdded) {
  auto writer = metadata("gemma3");
  writer.add("gemma3.attention.key_length", 4u)
      .add("gemma3.attention.sliding_window", 16u)
      .add("gemma3.rope.scaling.type", "linear")
      .add("gemma3.rope.scaling.factor", 8.0f);
  add_all(writer,
          {kOuter,
           kAttention,
           kMlp,
           {{"blk.0.attn_q_norm.weight", {4}},
            {"blk.0.attn_k_norm.weight", {4}},
            {"blk.0.post_attention_norm.weight", {8}},
            {"blk.0.post_ffw_norm.weight", {8}}}});
  auto checkpoint = load(writer);
  const auto& config = checkpoint.config;
  EXPECT_EQ(config["model_type"], "gemma3_text");
  EXPECT_EQ(config["query_pre_attn_scalar"], 4);
  EXPECT_EQ(config["sliding_window"], 16);
  EXPECT_EQ(config["sliding_window_pattern"], 6);
  EXPECT_EQ(config["rope_local_base_freq"], 10000.0);
  EXPECT_EQ(config["rope_scaling"],
            nlohmann::json({{"type", "linear"}, {"factor", 8.0}}));
  std::string layer = "model.layers.0.";
  for (const char* norm : {"input_layernorm",
                           "post_attention_layernorm",
                           "pre_feedforward_layernorm",
                           "post_feedforward_layernorm"}) {
    EXPECT_THAT(first_column(checkpoint, layer + norm + ".weight"),
                ElementsAre(-1, 0, 1, 2, 3, 4, 5, 6));
  }
  EXPECT_THAT(first_column(checkpoint, layer + "self_attn.k_norm.weight"),
              ElementsAre(-1, 0, 1, 2));
  EXPECT_THAT(first_column(checkpoint, layer + "self_attn.q_proj.weight"),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

TEST(GgufCheckpoint, ExpertsAreStacksAndMixtralIsALlamaWithExperts) {
  const Tensors experts = {{"blk.0.ffn_norm.weight", {8}},
                           {"blk.0.ffn_gate_inp.weight", {3, 8}},
                           {"blk.0.ffn_gate_exps.weight", {3, 5, 8}},
                           {"blk.0.ffn_up_exps.weight", {3, 5, 8}},
                           {"blk.0.ffn_down_exps.weight", {3, 8, 5}}};
  auto mixtral = metadata("llama");
  mixtral.add("llama.expert_count", 3u).add("llama.expert_used_count", 2u);
  add_all(mixtral, {kOuter, kAttention, experts});
  auto checkpoint = load(mixtral);
  EXPECT_EQ(checkpoint.config["model_type"], "mixtral");
  EXPECT_EQ(checkpoint.config["num_local_experts"], 3);
  std::string moe = "model.layers.0.block_sparse_moe.";
  EXPECT_EQ(checkpoint.weights.at(moe + "switch_mlp.down_proj.weight").shape(),
            (mx::Shape{3, 8, 5}));
  EXPECT_TRUE(checkpoint.weights.contains(moe + "gate.weight"));

  auto qwen = metadata("qwen2moe");
  qwen.add("qwen2moe.expert_count", 3u).add("qwen2moe.expert_used_count", 2u);
  add_all(qwen,
          {kOuter,
           kAttention,
           experts,
           {{"blk.0.ffn_gate_inp_shexp.weight", {8}},
            {"blk.0.ffn_gate_shexp.weight", {7, 8}},
            {"blk.0.ffn_up_shexp.weight", {7, 8}},
            {"blk.0.ffn_down_shexp.weight", {8, 7}}}});
  checkpoint = load(qwen);
  EXPECT_EQ(checkpoint.config["model_type"], "qwen2_moe");
  EXPECT_EQ(checkpoint.config["num_experts"], 3);
  // From the shapes, as the metadata hasn't them.
  EXPECT_EQ(checkpoint.config["moe_intermediate_size"], 5);
  EXPECT_EQ(checkpoint.config["shared_expert_intermediate_size"], 7);
  EXPECT_EQ(
      checkpoint.weights.at("model.layers.0.mlp.shared_expert_gate.weight")
          .shape(),
      (mx::Shape{1, 8}));
}

TEST(GgufCheckpoint, FusedTensorsStayFusedAsInTheReference) {
  auto writer = metadata("phi3");
  writer.add("phi3.rope.dimension_count", 2u)
      .add("phi3.rope.scaling.original_context_length", 32u);
  add_all(writer,
          {kOuter,
           {{"blk.0.attn_norm.weight", {8}},
            {"blk.0.attn_qkv.weight", {16, 8}},
            {"blk.0.attn_output.weight", {8, 8}},
            {"blk.0.ffn_norm.weight", {8}},
            {"blk.0.ffn_up.weight", {24, 8}},
            {"blk.0.ffn_down.weight", {8, 12}},
            {"rope_factors_long.weight", {1}},
            {"rope_factors_short.weight", {1}}}});
  auto checkpoint = load(writer);
  std::string layer = "model.layers.0.";
  EXPECT_TRUE(checkpoint.weights.contains(layer + "self_attn.qkv_proj.weight"));
  EXPECT_TRUE(checkpoint.weights.contains(layer + "mlp.gate_up_proj.weight"));
  EXPECT_EQ(checkpoint.weights.size(), 8u);
  EXPECT_EQ(checkpoint.config["partial_rotary_factor"], 0.5);
  EXPECT_EQ(checkpoint.config["original_max_position_embeddings"], 32);
  EXPECT_EQ(checkpoint.config["rope_scaling"],
            nlohmann::json({{"type", "longrope"},
                            {"long_factor", {0.0}},
                            {"short_factor", {0.0}},
                            {"original_max_position_embeddings", 32}}));
}

TEST(GgufCheckpoint, RopeScalings) {
  auto scaling_of = [](const std::function<void(GgufWriter&)>& change) {
    auto writer = tiny_llama();
    change(writer);
    return load(writer).config.value("rope_scaling", nlohmann::json());
  };
  EXPECT_EQ(scaling_of([](GgufWriter& writer) {
              writer.add("llama.rope.scaling.type", "yarn")
                  .add("llama.rope.scaling.factor", 4.0f)
                  .add("llama.rope.scaling.original_context_length", 32u)
                  .add("llama.rope.scaling.yarn_beta_fast", 16.0f);
            }),
            nlohmann::json({{"type", "yarn"},
                            {"factor", 4.0},
                            {"original_max_position_embeddings", 32},
                            {"beta_fast", 16.0}}));
  EXPECT_EQ(scaling_of([](GgufWriter& writer) {
              writer.add_tensor("rope_freqs.weight", {2}, {1.0f, 8.0f});
            }),
            nlohmann::json({{"type", "longrope"},
                            {"long_factor", {1.0, 8.0}},
                            {"short_factor", {1.0, 8.0}},
                            {"original_max_position_embeddings", 64}}));
  EXPECT_TRUE(scaling_of([](GgufWriter& writer) {
                writer.add("llama.rope.scaling.type", "none");
              }).is_null());
  auto writer = tiny_llama();
  writer.add("llama.rope.scaling.type", "spiral");
  auto error = error_of(writer);
  EXPECT_EQ(error.kind(), ErrorKind::unsupported);
  EXPECT_THAT(error.what(), HasSubstr("rope scaling 'spiral'"));
}

}  // namespace
}  // namespace mlxlm
