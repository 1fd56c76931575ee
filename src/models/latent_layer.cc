#include "models/latent_layer.h"

namespace mlxlm {
namespace {

const nn::Rope* rope_of(const ArchSpec& spec, int index) {
  return index < 0 ? nullptr : &spec.ropes.at(index);
}

nn::TokenIndex make_token_index(const ArchSpec& spec,
                                WeightBinder& weights,
                                const std::string& path) {
  const auto& index = spec.latent->index;
  const NormSpec norm{
      .kind = kernels::NormKind::layer, .bias = true, .eps = 1e-5f};
  return {.q = weights.linear(path + "wq_b",
                              index.num_heads * index.head_size,
                              spec.latent->sizes.query_rank),
          .k = weights.linear(path + "wk", index.head_size, spec.hidden_size),
          .k_norm = weights.norm(path + "k_norm", index.head_size, norm),
          .weight = weights.linear(
              path + "weights_proj", index.num_heads, spec.hidden_size),
          .rope = rope_of(spec, index.rope),
          .num_heads = index.num_heads,
          .num_tokens = index.num_tokens};
}

}  // namespace

nn::LatentAttention make_latent_attention(const ArchSpec& spec,
                                          const LayerSpec& layer,
                                          WeightBinder& weights,
                                          const std::string& path) {
  const auto& latent = *spec.latent;
  const auto& sizes = latent.sizes;
  const int width = spec.hidden_size;
  const NormSpec norm{.eps = latent.eps};
  nn::LatentAttention attention{
      .sizes = sizes,
      .q = weights.linear(path + (sizes.query_rank > 0 ? "q_b_proj" : "q_proj"),
                          sizes.num_heads * sizes.head(),
                          sizes.query_rank > 0 ? sizes.query_rank : width),
      .kv_down = weights.linear(path + "kv_a_proj_with_mqa",
                                sizes.rank + sizes.rotated,
                                width,
                                latent.bias),
      .latent_norm = weights.norm(path + "kv_a_layernorm", sizes.rank, norm),
      .o = weights.linear(path + spec.names.o,
                          width,
                          sizes.num_heads * sizes.value,
                          latent.bias),
      .rope = rope_of(spec, layer.rope),
      .query_factor = latent.query_factor,
      .latent_factor = latent.latent_factor,
      .query_scale = spec.query_scale,
      .spec = {.scale = spec.attention_scale}};
  if (sizes.query_rank > 0) {
    attention.q_down =
        weights.linear(path + "q_a_proj", sizes.query_rank, width, latent.bias);
    attention.q_norm =
        weights.norm(path + "q_a_layernorm", sizes.query_rank, norm);
  }
  if (latent.absorbed) {
    attention.key_up = weights.matrix_stack(
        path + "embed_q", sizes.num_heads, sizes.rank, sizes.fixed);
    attention.value_up = weights.matrix_stack(
        path + "unembed_out", sizes.num_heads, sizes.value, sizes.rank);
  } else {
    attention.kv_up =
        weights.linear(path + "kv_b_proj",
                       sizes.num_heads * (sizes.fixed + sizes.value),
                       sizes.rank);
  }
  if (spec.output_gate != OutputGate::none) {
    const bool full = spec.output_gate == OutputGate::full;
    attention.gate = weights.linear(path + spec.names.output_gate,
                                    sizes.num_heads * (full ? sizes.value : 1),
                                    width);
  }
  if (latent.index.num_heads > 0) {
    attention.index = make_token_index(spec, weights, path + "indexer.");
  }
  return attention;
}

nn::BlockIndex make_block_index(const ArchSpec& spec,
                                WeightBinder& weights,
                                const std::string& path,
                                const BlockIndexSpec& index) {
  const int width = spec.hidden_size;
  auto norm = [&](const char* name) {
    return weights.norm(path + name, index.head_size, spec.norm);
  };
  return {.q = weights.linear(
              path + "index_q_proj", index.num_heads * index.head_size, width),
          .k = weights.linear(path + "index_k_proj", index.head_size, width),
          .q_norm = norm("index_q_norm"),
          .k_norm = norm("index_k_norm"),
          .rope = &spec.ropes[index.rope],
          .num_heads = index.num_heads,
          .block_tokens = index.block_tokens,
          .num_blocks = index.num_blocks,
          .num_local_blocks = index.num_local_blocks};
}

}  // namespace mlxlm
