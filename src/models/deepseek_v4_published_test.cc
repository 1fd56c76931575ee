// DeepSeek-V4 and V4.1 as published, with names of their own and matrices of 8
// and 4 bits with scales of blocks, compute what the numbers they stand for do.
#include <algorithm>
#include <map>
#include <utility>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/model.h>

#include "models/random_checkpoint.h"
#include "tests/support/expect_error.h"
#include "tests/support/model_writer.h"
#include "tests/support/safetensors_dtypes.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// Parts of names, converted and published, in this order.
using Renames = std::vector<std::pair<std::string, std::string>>;

const Renames kNames{{"lm_head.", "head."},
                     {"model.embed_tokens.", "embed."},
                     {"model.", ""},
                     {".self_attn.", ".attn."},
                     {".mlp.", ".ffn."},
                     {".input_layernorm.", ".attn_norm."},
                     {".post_attention_layernorm.", ".ffn_norm."},
                     {".attn_hc.", ".hc_attn_"},
                     {".ffn_hc.", ".hc_ffn_"},
                     {".sinks", ".attn_sink"},
                     {".q_a_proj.", ".wq_a."},
                     {".q_b_proj.", ".wq_b."},
                     {".kv_proj.", ".wkv."},
                     {".o_a_proj.", ".wo_a."},
                     {".o_b_proj.", ".wo_b."},
                     {".q_a_norm.", ".q_norm."},
                     {".gate.e_score_correction_bias", ".gate.bias"},
                     {".shared_experts.gate_proj.", ".shared_experts.w1."},
                     {".shared_experts.down_proj.", ".shared_experts.w2."},
                     {".shared_experts.up_proj.", ".shared_experts.w3."},
                     {".experts.switch_mlp.", ".experts."},
                     {".switch_mlp.", ".experts."},
                     {".compressor.kv_norm.", ".compressor.norm."},
                     {".compressor.gate_proj.", ".compressor.wgate."},
                     {".indexer.k_proj.", ".indexer.wk."}};

const Renames kNamesOfV4{
    {"model.hc_head.hc_", "hc_head_"},
    {".compressor.indexer.scorer.weights_proj.", ".indexer.weights_proj."},
    {".compressor.indexer.q_b_proj.", ".indexer.q_b_proj."},
    {".compressor.indexer.", ".indexer.compressor."},
    {".self_attn.kv_norm.", ".self_attn.norm."},
    {".position_bias", ".ape"}};

std::string renamed(std::string name, const Renames& renames) {
  for (const auto& [from, to] : renames) {
    const auto at = name.find(from);
    if (at != std::string::npos) name.replace(at, from.size(), to);
  }
  return name;
}

// Published tensors, and the dtypes of those that MLX doesn't write.
struct Published {
  Weights tensors;
  std::map<std::string, std::string> dtypes;

  void add(const std::string& path,
           const mx::array& weight,
           const mx::array& scale) {
    tensors.insert_or_assign(path + ".weight", weight);
    tensors.insert_or_assign(path + ".scale", scale);
    dtypes[path + ".scale"] = "F8_E8M0";
    if (weight.dtype() == mx::uint8) dtypes[path + ".weight"] = "F8_E4M3";
  }
};

// 8-bit floats with a power of two for each block of `block` by `block`: the
// bytes, the exponents and the numbers they stand for.
std::vector<mx::array> to_fp8(const mx::array& weight, int block) {
  const int rows = weight.shape(0);
  const int columns = weight.shape(1);
  auto padded = [&](int size) { return (size + block - 1) / block * block; };
  auto blocks = mx::pad(
      weight, {{0, padded(rows) - rows}, {0, padded(columns) - columns}});
  blocks = mx::unflatten(mx::unflatten(blocks, 1, {-1, block}), 0, {-1, block});
  auto largest = mx::max(mx::abs(blocks), std::vector<int>{1, 3}, true);
  auto exponent = mx::ceil(mx::log2(mx::divide(largest, mx::array(448.0f))));
  auto scale = mx::power(mx::array(2.0f), exponent);
  auto whole = [&](const mx::array& values) {
    auto flat = mx::flatten(mx::flatten(values, 2, 3), 0, 1);
    return mx::contiguous(mx::slice(flat, {0, 0}, {rows, columns}));
  };
  auto bytes = mx::to_fp8(mx::divide(blocks, scale));
  auto values = mx::multiply(mx::from_fp8(bytes, mx::float32), scale);
  auto byte = mx::astype(mx::add(exponent, mx::array(127.0f)), mx::uint8);
  return {
      whole(bytes), mx::squeeze(byte, std::vector<int>{1, 3}), whole(values)};
}

// 4-bit floats, two a byte, with a power of two for each 32.
std::vector<mx::array> to_fp4(const mx::array& weight) {
  auto parts = mx::quantize(weight, 32, 4, "mxfp4");
  auto values = mx::dequantize(parts[0],
                               parts[1],
                               std::nullopt,
                               32,
                               4,
                               "mxfp4",
                               std::nullopt,
                               mx::float32);
  return {mx::view(parts[0], mx::int8), parts[1], values};
}

bool has_any(const std::string& name, const std::vector<std::string>& parts) {
  return std::ranges::any_of(parts, [&](const std::string& part) {
    return name.find(part) != std::string::npos;
  });
}

// Of a checkpoint with converted names, whose numbers become those that the
// published ones stand for.
Published published(Checkpoint& plain, const Renames& own, int block) {
  Published made;
  for (auto& [name, value] : plain.weights) {
    const auto path = renamed(renamed(name, own), kNames);
    const auto module = path.substr(0, path.rfind('.'));
    if (name.find("switch_mlp") != std::string::npos) {
      const std::string part =
          name.find("gate_proj") != std::string::npos ? "w1"
          : name.find("up_proj") != std::string::npos ? "w3"
                                                      : "w2";
      std::vector<mx::array> experts;
      for (int e = 0; e < value.shape(0); ++e) {
        auto small = to_fp4(mx::take(value, e, 0));
        made.add(module.substr(0, module.rfind('.') + 1) + std::to_string(e) +
                     "." + part,
                 small[0],
                 small[1]);
        experts.push_back(small[2]);
      }
      value = mx::stack(experts, 0);
    } else if (has_any(path,
                       {".wq_a.",
                        ".wq_b.",
                        ".attn.wkv.",
                        ".wo_a.",
                        ".wo_b.",
                        ".shared_experts."})) {
      const auto shape = value.shape();
      auto small = to_fp8(mx::reshape(value, {-1, value.shape(-1)}), block);
      made.add(module, small[0], small[1]);
      value = mx::reshape(small[2], shape);
    } else {
      made.tensors.insert_or_assign(path, value);
    }
  }
  return made;
}

mx::array logits_of(Model& model) {
  std::vector<int> tokens;
  for (int i = 0; i < 12; ++i) tokens.push_back(1 + i * i % 29);
  return model.forward(mx::array(tokens.data(), {1, 12}));
}

void write_model(const std::filesystem::path& folder,
                 json config,
                 const Published& made,
                 int block) {
  config["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"scale_fmt", "ue8m0"},
                                   {"activation_scheme", "dynamic"},
                                   {"weight_block_size", {block, block}}};
  write_text(folder / "config.json", config.dump());
  const auto file = folder / "model.safetensors";
  mx::save_safetensors(file.string(), made.tensors);
  set_dtypes(file, made.dtypes);
}

void expect_same_logits(const json& config,
                        const Renames& own,
                        int block,
                        const Weights& unread,
                        const Weights& given = {}) {
  auto plain = random_checkpoint(config, 5, given);
  auto made = published(plain, own, block);
  EXPECT_GE(made.dtypes.size(), 30u);
  for (const auto& [name, value] : unread) made.tensors.emplace(name, value);
  const TemporaryFolder folder;
  write_model(folder.path(), config, made, block);
  auto expected = logits_of(*make_model(plain));
  auto actual = logits_of(*load_model(folder.path().string()));
  auto gap = mx::max(mx::abs(mx::subtract(expected, actual)));
  EXPECT_LT(gap.item<float>(),
            2e-3f * mx::max(mx::abs(expected)).item<float>());
  EXPECT_GT(mx::var(expected).item<float>(), 1e-2f);
}

// Sizes that are multiples of 32, but not of 128.
json config_of(const char* model_type, const json& more) {
  return joined({{"model_type", model_type},
                 {"vocab_size", 40},
                 {"hidden_size", 160},
                 {"num_hidden_layers", 3},
                 {"num_attention_heads", 4},
                 {"head_dim", 64},
                 {"q_lora_rank", 32},
                 {"qk_rope_head_dim", 16},
                 {"o_groups", 2},
                 {"o_lora_rank", 32},
                 {"moe_intermediate_size", 64},
                 {"n_routed_experts", 3},
                 {"num_experts_per_tok", 2},
                 {"sliding_window", 4},
                 {"index_n_heads", 2},
                 {"index_head_dim", 32},
                 {"index_topk", 64},  // all: what is near the edge can't differ
                 {"hc_mult", 2},
                 {"hc_sinkhorn_iters", 2}},
                more);
}

json config_of_v4() {
  return config_of("deepseek_v4",
                   {{"compress_ratios", {0, 4, 8}},
                    {"compress_rate_hca", 8},
                    {"num_hash_layers", 1}});
}

// The experts of each token in layers without a router.
Weights experts_by_token() {
  auto numbers = mx::remainder(mx::arange(80), mx::array(3));
  return {{"model.layers.0.mlp.gate.tid2eid",
           mx::astype(mx::reshape(numbers, {40, 2}), mx::int64)}};
}

TEST(DeepseekV4Published, EqualsItsNumbers) {
  expect_same_logits(config_of_v4(),
                     kNamesOfV4,
                     128,
                     {{"mtp.0.attn.wkv.weight", mx::zeros({2, 2})},
                      {"layers.3.attn.wkv.weight", mx::zeros({2, 2})}},
                     experts_by_token());
}

TEST(DeepseekV41Published, EqualsItsNumbers) {
  expect_same_logits(config_of("deepseek_v41",
                               {{"compress_ratios", {0, 4, 1}},
                                {"kv_source_layer_ids", {1, 2}},
                                {"index_source_layer_ids", {1, 2}}}),
                     {},
                     32,
                     {{"mtp.0.attn.wkv.weight", mx::zeros({2, 2})},
                      {"vision.patch.weight", mx::zeros({2, 2})},
                      {"aligner.weight", mx::zeros({2, 2})},
                      {"image_newline", mx::zeros({2})},
                      {"layers.0.ffn.gate.bias_vl", mx::zeros({3})},
                      {"layers.0.engram.table.weight", mx::zeros({2, 2})}});
}

TEST(DeepseekV4Published, ScalesThatDontFitAreRefused) {
  const auto config = config_of_v4();
  auto plain = random_checkpoint(config, 5, experts_by_token());
  const auto made = published(plain, kNamesOfV4, 128);
  auto refused = [&](const std::string& name,
                     const mx::array& scale,
                     const std::string& message) {
    auto changed = made;
    changed.tensors.insert_or_assign(name, scale);
    changed.dtypes.erase(name);
    const TemporaryFolder folder;
    write_model(folder.path(), config, changed, 128);
    expect_error(ErrorKind::weights, message, [&] {
      load_model(folder.path().string());
    });
  };
  refused("layers.0.attn.wkv.scale",
          mx::zeros({3, 7}, mx::uint8),
          "layers.0.self_attn.kv_proj has a scale");
  refused("layers.0.attn.wo_b.scale",
          mx::full({2, 1}, 0.3f),
          "o_b_proj.scale must hold powers of two");
}

}  // namespace
}  // namespace mlxlm
