#include "models/compressed_layer.h"

namespace mlxlm {
namespace {

// Rows of `size` numbers.
nn::Compressor make_compressor(const CompressedAttentionSpec& s,
                               const ArchSpec& spec,
                               WeightBinder& weights,
                               const std::string& path,
                               int size) {
  const int outputs = s.overlaps ? 2 * size : size;
  auto linear = [&](const char* name) {
    return weights.linear(path + name, outputs, spec.hidden_size);
  };
  nn::Compressor made{.kv = linear("kv_proj"),
                      .overlaps = s.overlaps,
                      .norm = weights.norm(path + "kv_norm", size, spec.norm)};
  if (s.group_tokens > 1) made.gate = linear("gate_proj");
  if (s.has_places) {
    made.places =
        weights.tensor(path + "position_bias", {s.group_tokens, outputs});
  }
  return made;
}

nn::RowIndex make_row_index(const CompressedAttentionSpec& s,
                            const ArchSpec& spec,
                            WeightBinder& weights,
                            const std::string& path) {
  const auto& index = *s.index;
  nn::RowIndex made{
      .q = weights.linear(
          path + "q_b_proj", index.num_heads * index.head_size, s.query_rank),
      .weight = weights.linear(
          path + s.weight_name, index.num_heads, spec.hidden_size),
      .num_heads = index.num_heads,
      .num_rows = index.num_rows,
      .num_blocks = index.num_blocks,
      .block_rows = index.block_rows};
  if (s.own_index_rows) {
    made.compressor = make_compressor(s, spec, weights, path, index.head_size);
  } else if (s.compresses) {
    made.k = weights.linear(path + "k_proj", index.head_size, s.head_size);
    made.k_norm = weights.norm(path + "k_norm", index.head_size, spec.norm);
  }
  return made;
}

}  // namespace

std::shared_ptr<nn::Mixer> make_compressed_attention(
    const CompressedAttentionSpec& s,
    const ArchSpec& spec,
    WeightBinder& weights,
    const std::string& path) {
  const int width = spec.hidden_size;
  const int all_heads = spec.num_heads * s.head_size;
  const int groups = s.num_output_groups;
  const auto& rope = spec.ropes[s.rope];
  nn::CompressedAttentionParts parts{
      .sizes = {.num_heads = spec.num_heads,
                .head_size = s.head_size,
                .rotated = s.rotated,
                .num_output_groups = groups,
                .window_tokens = s.window_tokens,
                .group_tokens = s.group_tokens,
                .sees_all_rows = s.sees_all_rows,
                .rounds = s.rounds},
      .q_down = weights.linear(path + "q_a_proj", s.query_rank, width),
      .q = weights.linear(path + "q_b_proj", all_heads, s.query_rank),
      .kv = weights.linear(path + "kv_proj", s.head_size, width),
      .q_norm = weights.norm(path + "q_a_norm", s.query_rank, spec.norm),
      .kv_norm = weights.norm(path + "kv_norm", s.head_size, spec.norm),
      .rope = &rope,
      .back = rope.reversed(),
      .sinks = weights.tensor(path + "sinks", {spec.num_heads}),
      .out_groups = weights.matrix_stack(
          path + "o_a_proj", groups, s.output_rank, all_heads / groups),
      .out = weights.linear(path + "o_b_proj", width, groups * s.output_rank)};
  if (s.q_head_norm) parts.q_head_norm = {.eps = spec.norm.eps};
  if (s.compresses) {
    parts.compressor =
        make_compressor(s, spec, weights, path + "compressor.", s.head_size);
  }
  if (s.index)
    parts.index = make_row_index(s, spec, weights, path + s.index_name + ".");
  return std::make_shared<nn::CompressedAttention>(std::move(parts));
}

Layer::Hyper make_hyper(const ArchSpec& spec,
                        WeightBinder& weights,
                        const std::string& path) {
  const auto& hyper = *spec.hyper;
  const int n = hyper.num_streams;
  const int outputs = (2 + n) * n;
  auto connection = [&](const std::string& name) {
    return nn::HyperConnection{
        .num_streams = n,
        .num_rounds = hyper.num_rounds,
        .eps = hyper.eps,
        .norm_eps = spec.norm.eps,
        .weight = weights.tensor(path + name + ".fn",
                                 {outputs, n * spec.hidden_size}),
        .scale = weights.tensor(path + name + ".scale", {3}),
        .base = weights.tensor(path + name + ".base", {outputs})};
  };
  return {connection("attn_hc"), connection("ffn_hc")};
}

nn::HyperHead make_hyper_head(const ArchSpec& spec, WeightBinder& weights) {
  const int n = spec.hyper->num_streams;
  const auto path = spec.prefix + "hc_head.hc_";
  return {.eps = spec.hyper->eps,
          .norm_eps = spec.norm.eps,
          .weight = weights.tensor(path + "fn", {n, n * spec.hidden_size}),
          .scale = weights.tensor(path + "scale", {1}),
          .base = weights.tensor(path + "base", {n})};
}

}  // namespace mlxlm
