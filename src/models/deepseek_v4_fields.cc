#include "models/deepseek_v4_fields.h"

#include <algorithm>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "models/expert_fields.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

constexpr int kMaxSize = 1 << 20;
constexpr int kGroup = 32;  // numbers with a scale in common, of MLX's formats

// As published: other names, and matrices of small floats with a scale for each
// 32 numbers (of 4 bits), each square of 32 by 32 or of 128 by 128.
const std::vector<WeightRule> kPublished{
    {Action::drop, "vision.*"},
    {Action::drop, "aligner.*"},
    {Action::drop, "image_*"},
    {Action::drop, "mtp.*"},
    {Action::drop, "*.engram.*"},
    {Action::drop, "*.gate.bias_vl"},
    {Action::rename, "head.*", "lm_head.*"},
    {Action::rename, "embed.*", "model.embed_tokens.*"},
    {Action::rename, "norm.weight", "model.norm.weight"},
    {Action::rename, "layers.*", "model.layers.*"},
    {Action::rename, "*.attn.*", "*.self_attn.*"},
    {Action::rename, "*.ffn.*", "*.mlp.*"},
    {Action::rename, "*.attn_norm.*", "*.input_layernorm.*"},
    {Action::rename, "*.ffn_norm.*", "*.post_attention_layernorm.*"},
    {Action::rename, "*.hc_attn_*", "*.attn_hc.*"},
    {Action::rename, "*.hc_ffn_*", "*.ffn_hc.*"},
    {Action::rename, "*.attn_sink", "*.sinks"},
    {Action::rename, "*.wq_a.*", "*.q_a_proj.*"},
    {Action::rename, "*.wq_b.*", "*.q_b_proj.*"},
    {Action::rename, "*.wkv.*", "*.kv_proj.*"},
    {Action::rename, "*.wgate.*", "*.gate_proj.*"},
    {Action::rename, "*.wo_a.*", "*.o_a_proj.*"},
    {Action::rename, "*.wo_b.*", "*.o_b_proj.*"},
    {Action::rename, "*.q_norm.*", "*.q_a_norm.*"},
    {Action::rename, "*.compressor.norm.*", "*.compressor.kv_norm.*"},
    {Action::rename, "*.indexer.wk.*", "*.indexer.k_proj.*"},
    {Action::rename, "*.gate.bias", "*.gate.e_score_correction_bias"},
    {Action::rename, "*.shared_experts.w1.*", "*.shared_experts.gate_proj.*"},
    {Action::rename, "*.shared_experts.w2.*", "*.shared_experts.down_proj.*"},
    {Action::rename, "*.shared_experts.w3.*", "*.shared_experts.up_proj.*"}};

// One scale for each 32 numbers of a row, as an exponent, of those of blocks.
// scale [rows or blocks of rows, blocks of columns] -> [num_rows, num_groups]
mx::array exponents(mx::array scale, int block, int num_rows, int num_groups) {
  if (scale.shape(0) != num_rows) scale = mx::repeat(scale, block, 0);
  if (block > kGroup) scale = mx::repeat(scale, block / kGroup, 1);
  return mx::slice(scale, {0, 0}, {num_rows, num_groups});
}

// Powers of two as their exponents, e8m0; none if others are among them.
std::optional<mx::array> e8m0_of(const mx::array& scale) {
  if (scale.dtype() == mx::uint8) return scale;
  const auto values = mx::astype(scale, mx::float32);
  const auto exponent = mx::round(mx::log2(values));
  const auto power = mx::power(mx::array(2.0f), exponent);
  if (!mx::array_equal(power, values).item<bool>()) return std::nullopt;
  return mx::astype(mx::add(exponent, mx::array(127.0f)), mx::uint8);
}

// How many columns, and of blocks rows, have a scale in common: 32 or 128. 0
// if these are no scales of a matrix of that many rows and columns.
int block_of(const mx::array& scale, int rows, int columns) {
  if (scale.ndim() != 2 || columns % kGroup != 0) return 0;
  auto blocks = [](int size, int block) { return (size + block - 1) / block; };
  for (int block : {kGroup, 128}) {
    if (scale.shape(1) == blocks(columns, block) &&
        (scale.shape(0) == rows || scale.shape(0) == blocks(rows, block))) {
      return block;
    }
  }
  return 0;
}

// "<path>.weight" of bytes with a "<path>.scale", in MLX's formats.
void take_small_floats(Checkpoint& checkpoint) {
  std::vector<std::string> paths;
  for (const auto& [name, value] : checkpoint.weights) {
    if (name.ends_with(".scale") && !name.ends_with("_hc.scale")) {
      paths.push_back(name.substr(0, name.size() - 6));
    }
  }
  for (const auto& path : paths) {
    auto scale = *take_weight(checkpoint, path + ".scale");
    auto found = checkpoint.weights.find(path + ".weight");
    int bits = 8;
    int block = 0;
    if (found != checkpoint.weights.end() && found->second.ndim() == 2 &&
        found->second.itemsize() == 1) {
      const auto& bytes = found->second;
      // Bytes of two numbers each have a scale for every 16.
      if (bytes.dtype() == mx::uint8) {
        block = block_of(scale, bytes.shape(0), bytes.shape(1));
      }
      if (block == 0) {
        bits = 4;
        block = block_of(scale, bytes.shape(0), 2 * bytes.shape(1));
      }
    }
    if (block == 0) {
      throw Error(ErrorKind::weights,
                  checkpoint.source + ": " + path +
                      " has a scale, but no weight of bytes that it is of");
    }
    const auto e8m0 = e8m0_of(scale);
    if (!e8m0) {
      throw Error(
          ErrorKind::weights,
          checkpoint.source + ": " + path + ".scale must hold powers of two");
    }
    auto& packed = found->second;
    scale = exponents(
        *e8m0, block, packed.shape(0), packed.shape(1) * 8 / bits / kGroup);
    packed = mx::view(packed, mx::uint32);
    checkpoint.weights.insert_or_assign(path + ".scales", scale);
    checkpoint.quantized.insert_or_assign(
        path, Quantization{kGroup, bits, bits == 4 ? "mxfp4" : "mxfp8"});
  }
}

// The output projection is a matrix for each group of heads.
void split_groups(Checkpoint& checkpoint,
                  const std::string& path,
                  int num_groups) {
  for (const char* tensor : {".weight", ".scales", ".biases"}) {
    auto found = checkpoint.weights.find(path + tensor);
    if (found == checkpoint.weights.end() || found->second.ndim() != 2 ||
        found->second.shape(0) % num_groups != 0) {
      continue;
    }
    found->second = mx::unflatten(found->second, 0, {num_groups, -1});
  }
}

}  // namespace

void split_output_groups(Checkpoint& checkpoint,
                         const ArchSpec& spec,
                         int num_groups) {
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    split_groups(
        checkpoint, spec.layer_path(i) + "self_attn.o_a_proj", num_groups);
  }
}

void take_published_deepseek_v4(Checkpoint& checkpoint,
                                const ArchSpec& spec,
                                int num_output_groups,
                                const std::vector<WeightRule>& rules) {
  const bool published =
      std::ranges::any_of(checkpoint.weights, [](const auto& entry) {
        return entry.first.find(".attn.") != std::string::npos;
      });
  if (!published) return;
  apply_rules(checkpoint, rules);
  apply_rules(checkpoint, kPublished);
  take_small_floats(checkpoint);
  split_output_groups(checkpoint, spec, num_output_groups);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto& experts = *spec.layers[i].experts;
    const auto mlp = spec.layer_path(i) + "mlp.";
    stack_experts(checkpoint,
                  mlp + "experts.",
                  mlp + experts.names.stack + ".",
                  experts.num_experts,
                  kNumberedParts);
  }
}

ArchSpec read_deepseek_v4_sizes(const ConfigReader& config, FieldDefaults own) {
  own.num_heads = 64;
  own.vocabulary_size = 129280;
  own.head_size = 512;
  own.names = {.intermediate_size = "moe_intermediate_size",
               .num_kv_heads = nullptr};
  return read_sizes(config, KvHeads::as_heads, HeadSize::optional, own);
}

HyperSpec read_hyper(const ConfigReader& config) {
  return {.num_streams = config.get_int("hc_mult", 4, 1, 1 << 6),
          .num_rounds = config.get_int("hc_sinkhorn_iters", 20, 1, 1 << 10),
          .eps = static_cast<float>(config.get_float("hc_eps", 1e-6))};
}

CompressedAttentionSpec read_compressed_attention(const ConfigReader& config,
                                                  const ArchSpec& spec,
                                                  int query_rank) {
  CompressedAttentionSpec attention{
      .head_size = spec.head_size,
      .query_rank = config.get_int("q_lora_rank", query_rank, 1, kMaxSize),
      .num_output_groups = config.get_int("o_groups", 8, 1, spec.num_heads),
      .output_rank = config.get_int("o_lora_rank", 1024, 1, kMaxSize),
      .window_tokens = config.get_int("sliding_window", 128, 1)};
  if (spec.num_heads % attention.num_output_groups != 0) {
    config.fail(
        "o_groups",
        "a divisor of num_attention_heads = " + std::to_string(spec.num_heads));
  }
  return attention;
}

CompressedAttentionSpec::Index read_row_index(
    const ConfigReader& config,
    const CompressedAttentionSpec& attention,
    int num_heads) {
  CompressedAttentionSpec::Index index{
      .num_heads = config.get_int("index_n_heads", num_heads, 1, 1 << 14),
      .head_size = config.get_int("index_head_dim", 128, 1, 1 << 14),
      .num_rows = config.get_int("index_topk", 512, 1)};
  if (index.head_size < attention.rotated) {
    config.fail("index_head_dim", "at least qk_rope_head_dim");
  }
  return index;
}

ExpertsSpec read_deepseek_v4_experts(const ConfigReader& config,
                                     const DeepseekV4Experts& defaults) {
  ExpertsSpec experts;
  experts.num_experts =
      config.get_int("n_routed_experts", defaults.num_experts, 1, 1 << 14);
  experts.hidden_size = config.get_int(
      "moe_intermediate_size", defaults.hidden_size, 1, kMaxSize);
  experts.shared_hidden_size = experts.hidden_size;
  experts.names.selection_bias = "gate.e_score_correction_bias";
  experts.names.stack = "experts.switch_mlp";
  auto& router = experts.router;
  router.num_chosen =
      config.get_int("num_experts_per_tok", 6, 1, experts.num_experts);
  accept_only(config, "scoring_func", {"sqrtsoftplus", "sigmoid", "softmax"});
  const auto score = config.get_string("scoring_func", "sqrtsoftplus");
  router.score = score == "sigmoid"   ? nn::RouterScore::sigmoid
                 : score == "softmax" ? nn::RouterScore::softmax
                                      : nn::RouterScore::sqrt_softplus;
  const double temperature = config.get_float("gate_temp", 1);
  if (temperature <= 0) config.fail("gate_temp", "a positive number");
  router.logit_scale = static_cast<float>(1 / temperature);
  router.normalize =
      config.get_bool("norm_topk_prob", true) && router.num_chosen > 1;
  router.scale =
      static_cast<float>(config.get_float("routed_scaling_factor", 1.5));
  const double limit = config.get_float("swiglu_limit", 10);
  if (limit > 0) {
    experts.clamp.gate_max = experts.clamp.up_limit = static_cast<float>(limit);
  }
  return experts;
}

nn::Rope read_compressed_rope(const ConfigReader& config,
                              const std::optional<ConfigReader>& scaling,
                              int dimensions) {
  double theta = config.get_float("compress_rope_theta", 160000);
  if (scaling) theta = scaling->get_float("rope_theta", theta);
  if (theta <= 1) config.fail("compress_rope_theta", "a number over 1");
  const int positions = config.get_int("max_position_embeddings", 1048576, 1);
  const nn::RopeOptions options{
      .dimensions = dimensions, .base = theta, .traditional = true};
  if (!scaling ||
      (nn::rope_type(*scaling) == "default" && !scaling->has("factor"))) {
    return nn::make_rope(options, std::nullopt);
  }
  const char* original = "original_max_position_embeddings";
  const nlohmann::json yarn{{"type", "yarn"},
                            {"factor", scaling->get_float("factor", 1)},
                            {original, scaling->get_float(original, positions)},
                            {"beta_fast", scaling->get_int("beta_fast", 32, 1)},
                            {"beta_slow", scaling->get_int("beta_slow", 1, 1)},
                            {"mscale", 0},
                            {"mscale_all_dim", 0}};
  return nn::make_rope(options, scaling->with_values(yarn));
}

}  // namespace mlxlm
