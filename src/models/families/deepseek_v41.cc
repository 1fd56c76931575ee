// deepseek_v41, deepseek_v41_text: several streams joined by hyper-connections,
// attention to a window and to compressed groups of tokens.
#include <algorithm>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"
#include "models/text_half.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

constexpr int kMaxSize = 1 << 20;

// As published: other names, and matrices of small floats with a scale for each
// 32 numbers or each square of 32 by 32.
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

// The scale of each row's groups, as exponents.
mx::array exponents(mx::array scale, int num_rows) {
  if (scale.dtype() != mx::uint8) {
    scale = mx::astype(
        mx::add(mx::log2(mx::astype(scale, mx::float32)), mx::array(127.0f)),
        mx::uint8);
  }
  if (scale.shape(0) == num_rows) return scale;
  scale = mx::repeat(scale, 32, 0);
  return mx::slice(scale, {0, 0}, {num_rows, scale.shape(1)});
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
    auto weight = checkpoint.weights.find(path + ".weight");
    if (weight == checkpoint.weights.end() ||
        weight->second.dtype() != mx::uint8 || weight->second.ndim() != 2 ||
        weight->second.shape(1) % 16 != 0 || scale.ndim() != 2) {
      throw Error(ErrorKind::weights,
                  checkpoint.source + ": " + path +
                      " has a scale, but no weight of bytes that it is of");
    }
    auto& packed = weight->second;
    const int per_group = packed.shape(1) / std::max(scale.shape(1), 1);
    const int bits = per_group == 16 ? 4 : 8;
    scale = exponents(scale, packed.shape(0));
    packed = mx::view(packed, mx::uint32);
    checkpoint.weights.insert_or_assign(path + ".scales", scale);
    checkpoint.quantized.insert_or_assign(
        path, Quantization{32, bits, bits == 4 ? "mxfp4" : "mxfp8"});
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

void take_published(Checkpoint& checkpoint,
                    const ArchSpec& spec,
                    int num_groups) {
  const bool converted = std::ranges::any_of(
      checkpoint.weights,
      [](const auto& entry) { return entry.first.starts_with("model."); });
  if (converted) return;
  apply_rules(checkpoint, kPublished);
  take_small_floats(checkpoint);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    const auto layer = spec.layer_path(i);
    split_groups(checkpoint, layer + "self_attn.o_a_proj", num_groups);
    stack_experts(checkpoint,
                  layer + "mlp.experts.",
                  layer + "mlp.experts.switch_mlp.",
                  spec.layers[i].experts->num_experts,
                  kNumberedParts);
  }
}

ExpertsSpec read_v41_experts(const ConfigReader& config) {
  ExpertsSpec experts;
  experts.num_experts = config.get_int("n_routed_experts", 384, 1, 1 << 14);
  experts.hidden_size =
      config.get_int("moe_intermediate_size", 2304, 1, kMaxSize);
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

// One for layers of windows alone, and yarn's for the others.
std::vector<nn::Rope> read_ropes(const ConfigReader& config, int dimensions) {
  const double theta = config.get_float("compress_rope_theta", 160000);
  if (theta <= 1) config.fail("compress_rope_theta", "a number over 1");
  const nlohmann::json none = nlohmann::json::object();
  const auto scaling =
      config.find_object("rope_scaling").value_or(config.with_values(none));
  nlohmann::json yarn{
      {"type", "yarn"},
      {"factor", scaling.get_float("factor", 1)},
      {"original_max_position_embeddings",
       scaling.get_float(
           "original_max_position_embeddings",
           config.get_int("max_position_embeddings", 1048576, 1))},
      {"beta_fast", scaling.get_int("beta_fast", 32, 1)},
      {"beta_slow", scaling.get_int("beta_slow", 1, 1)},
      {"mscale", 0},
      {"mscale_all_dim", 0}};
  return {read_plain_rope(config, dimensions, 10000, /*traditional=*/true),
          nn::make_rope(
              {.dimensions = dimensions, .base = theta, .traditional = true},
              config.with_values(yarn))};
}

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
  CompressedAttentionSpec::Index index{
      .num_heads = config.get_int("index_n_heads", 32, 1, 1 << 14),
      .head_size = config.get_int("index_head_dim", 128, 1, 1 << 14),
      .num_rows = config.get_int("index_topk", 512, 1)};
  const int num_blocks = config.get_int("candidate_topk_blocks", 2048, 0);
  const int block_rows = config.get_int("candidate_block_size", 8, 1);
  if (index.head_size < common.rotated) {
    config.fail("index_head_dim", "at least qk_rope_head_dim");
  }
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
  auto spec =
      read_sizes(config,
                 KvHeads::as_heads,
                 HeadSize::optional,
                 {.hidden_size = 5120,
                  .num_layers = 40,
                  .intermediate_size = 2304,
                  .num_heads = 64,
                  .vocabulary_size = 129280,
                  .eps = 1e-20,
                  .head_size = 512,
                  .names = {.intermediate_size = "moe_intermediate_size",
                            .num_kv_heads = nullptr}});
  if (!config.find_ints("engram_layer_ids")
           .value_or(std::vector<int>{})
           .empty()) {
    throw Error(ErrorKind::unsupported,
                "config.json: layers with engram memory (engram_layer_ids) "
                "aren't supported");
  }
  CompressedAttentionSpec attention{
      .head_size = spec.head_size,
      .rotated = config.get_int("qk_rope_head_dim", 64, 2, spec.head_size),
      .query_rank = config.get_int("q_lora_rank", 1280, 1, kMaxSize),
      .num_output_groups = config.get_int("o_groups", 8, 1, spec.num_heads),
      .output_rank = config.get_int("o_lora_rank", 1024, 1, kMaxSize),
      .window_tokens = config.get_int("sliding_window", 128, 1)};
  if (spec.num_heads % attention.num_output_groups != 0) {
    config.fail(
        "o_groups",
        "a divisor of num_attention_heads = " + std::to_string(spec.num_heads));
  }
  spec.ropes = read_ropes(config, attention.rotated);
  place_attention(config, attention, spec);
  spec.hyper = HyperSpec{
      .num_streams = config.get_int("hc_mult", 4, 1, 1 << 6),
      .num_rounds = config.get_int("hc_sinkhorn_iters", 20, 1, 1 << 10),
      .eps = static_cast<float>(config.get_float("hc_eps", 1e-6))};
  const auto experts = read_v41_experts(config);
  for (auto& layer : spec.layers) layer.clamp = experts.clamp;
  use_experts(spec, experts);
  spec.own_caches = true;
  take_published(checkpoint, spec, attention.num_output_groups);
  return spec;
}

}  // namespace mlxlm
