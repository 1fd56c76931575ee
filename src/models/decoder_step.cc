#include "models/decoder_step.h"

#include <mlx/mlx.h>

#include "cache/kv_cache.h"

namespace mlxlm {
namespace {

// Whether a decoder is nothing but layers of attention and an MLP.
bool is_plain(const ArchSpec& spec) {
  return !spec.parallel && !spec.altup && !spec.ngram &&
         !spec.per_layer_input && !spec.embedding_norm &&
         spec.positions_name.empty() && spec.ropes.size() == 1 &&
         !spec.ropes[0].depends_on_length() &&
         spec.activation == kernels::Activation::silu && spec.gated_mlp;
}

bool is_plain(const nn::Attention& a) {
  return a.k && a.v && !a.v_norm && !a.norm_after_rope && a.rope != nullptr &&
         !a.alternating_heads && !a.query_scale.depends_on_position() &&
         !a.query_gain && !a.gate && !a.answer_norm && a.clip == 0.0f &&
         a.value_factor == 1.0f && a.chunk_tokens == 0 && !a.heads_norm &&
         !a.key_step && !a.value_step && !a.mix && !a.blocks && !a.index &&
         a.spec.causal && !a.spec.visible && !a.spec.expand;
}

bool is_plain(const nn::Mlp& mlp) {
  return mlp.gate && mlp.fusible() &&
         mlp.activation == kernels::Activation::silu;
}

std::optional<kernels::StepLayer> step_layer(const ArchSpec& spec,
                                             std::size_t index,
                                             const Layer& layer) {
  const auto* attention = std::get_if<nn::Attention>(&layer.mixer);
  const auto* mlp = std::get_if<nn::Mlp>(&layer.mlp);
  const auto& own = spec.layers[index];
  if (attention == nullptr || mlp == nullptr || !is_plain(*attention) ||
      !is_plain(*mlp) || layer.attention_output_norm || layer.mlp_output_norm ||
      layer.shortcut || layer.attention_mix || layer.mlp_mix ||
      layer.per_layer_gate || layer.scalar || layer.first_state_gain ||
      layer.altup || layer.laurel || own.norm_after || own.projects_no_keys ||
      own.also_reads >= 0) {
    return std::nullopt;
  }
  return kernels::StepLayer{
      .attention_norm = pointer(layer.attention_norm),
      .q = &attention->q,
      .k = &*attention->k,
      .v = &*attention->v,
      .o = &attention->o,
      .q_norm = pointer(attention->q_norm),
      .k_norm = pointer(attention->k_norm),
      .attention_scale = attention->spec.scale,
      .softcap = attention->spec.softcap,
      .window_tokens = attention->spec.window_tokens,
      .sinks = attention->spec.sinks ? &*attention->spec.sinks : nullptr,
      .mlp_norm = pointer(layer.mlp_norm),
      .gate = &*mlp->gate,
      .up = &mlp->up,
      .down = &mlp->down};
}

}  // namespace

std::unique_ptr<DecoderStep> DecoderStep::make(
    const ArchSpec& spec,
    const kernels::Linear& embedding,
    const std::vector<Layer>& layers,
    const std::optional<kernels::Norm>& norm,
    const kernels::Linear& head) {
  if (!is_plain(spec) || !norm) return nullptr;
  kernels::StepSpec step{.embedding = &embedding,
                         .embedding_scale = spec.embedding_scale,
                         .rope = spec.ropes[0].at(1, 0),
                         .num_heads = spec.num_heads,
                         .num_kv_heads = spec.num_kv_heads,
                         .head_size = spec.head_size,
                         .residual_scale = spec.residual_scale,
                         .norm = &*norm,
                         .head = &head};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    auto layer = step_layer(spec, i, layers[i]);
    const auto* attention = std::get_if<nn::Attention>(&layers[i].mixer);
    if (!layer || attention->num_heads != spec.num_heads ||
        attention->num_kv_heads != spec.num_kv_heads) {
      return nullptr;
    }
    step.layers.push_back(*layer);
  }
  auto made = kernels::make_step(step);
  if (made == nullptr) return nullptr;
  return std::unique_ptr<DecoderStep>(new DecoderStep(std::move(made)));
}

std::optional<mx::array> DecoderStep::run(const mx::array& tokens,
                                          const PromptCache& cache) {
  if (tokens.size() != 1 || cache.empty()) return std::nullopt;
  std::vector<kernels::StepRows> rows;
  for (const auto& each : cache) {
    const auto* own = dynamic_cast<const KVCache*>(each.get());
    if (own == nullptr || !own->has_room_in_place() ||
        own->rows().keys.batch_size() != 1 ||
        own->rows().keys.plain().dtype() != step_->dtype() ||
        own->offset() != cache[0]->offset()) {
      return std::nullopt;
    }
    rows.push_back({own->rows().keys.plain(), own->rows().values.plain()});
    if (rows.back().keys.shape(2) != rows[0].keys.shape(2)) return std::nullopt;
  }
  auto logits = (*step_)(tokens, rows, cache[0]->offset());
  // The rows change behind MLX's back: what reads them must come after this, in
  // another submission.
  mx::async_eval(logits);
  for (const auto& each : cache) {
    static_cast<KVCache&>(*each).took_in_place(logits);
  }
  return logits;
}

}  // namespace mlxlm
