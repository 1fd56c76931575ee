#include "models/decoder_step.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "cache/kv_cache.h"
#include "ranks/ranks.h"

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
         a.spec.causal && !a.spec.visible && !a.spec.expand &&
         a.partial == Ranks::all().several();
}

bool is_plain(const nn::Mlp& mlp) {
  return mlp.gate && mlp.partial == Ranks::all().several() && mlp.fusible() &&
         mlp.activation == kernels::Activation::silu;
}

bool is_plain(const nn::Router& router) {
  const auto& spec = router.spec;
  return router.linear.plain() && !router.linear.bias &&
         !router.selection_bias && !router.expert_scale && !router.table &&
         (spec.score == nn::RouterScore::softmax ||
          spec.score == nn::RouterScore::chosen_softmax) &&
         spec.num_groups == spec.num_chosen_groups &&
         spec.logit_scale == 1.0f && spec.softcap == 0.0f;
}

bool is_plain(const nn::Experts& experts) {
  const auto& norms = experts.norms;
  return is_plain(experts.router) && experts.gate &&
         experts.partial == Ranks::all().several() &&
         experts.activation == kernels::Activation::silu &&
         !experts.clamp.active() && !experts.scale_input && !experts.shared &&
         !experts.to_latent && !norms.router && !norms.chosen &&
         !norms.chosen_output && !norms.latent && !norms.latent_output &&
         !norms.each && !norms.output_gain &&
         experts.router.linear.weight.shape(0) == experts.num_experts;
}

// False if they do something else than a step does.
bool take_mlp(const Layer& layer, kernels::StepLayer& step) {
  if (const auto* mlp = std::get_if<nn::Mlp>(&layer.mlp)) {
    if (!is_plain(*mlp)) return false;
    step.gate = &*mlp->gate;
    step.up = &mlp->up;
    step.down = &mlp->down;
    return true;
  }
  const auto* experts = std::get_if<nn::Experts>(&layer.mlp);
  if (experts == nullptr || !is_plain(*experts)) return false;
  const auto& router = experts->router;
  step.gate = &*experts->gate;
  step.up = &experts->up;
  step.down = &experts->down;
  step.experts = {
      .router = &router.linear,
      .num_chosen = router.spec.num_chosen,
      .normalize = router.spec.normalize ||
                   router.spec.score == nn::RouterScore::chosen_softmax,
      .scale = router.spec.scale};
  return true;
}

std::optional<kernels::StepLayer> step_layer(const ArchSpec& spec,
                                             std::size_t index,
                                             const Layer& layer) {
  const auto* attention = std::get_if<nn::Attention>(&layer.mixer);
  const auto& own = spec.layers[index];
  if (attention == nullptr || !is_plain(*attention) ||
      layer.attention_output_norm || layer.mlp_output_norm || layer.shortcut ||
      layer.attention_mix || layer.mlp_mix || layer.per_layer_gate ||
      layer.scalar || layer.first_state_gain || layer.altup || layer.laurel ||
      own.norm_after || own.projects_no_keys || own.also_reads >= 0) {
    return std::nullopt;
  }
  kernels::StepLayer step{
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
      .mlp_norm = pointer(layer.mlp_norm)};
  if (!take_mlp(layer, step)) return std::nullopt;
  return step;
}

// The caches of each row, layer by layer; none if some are of other kinds or
// get several tokens.
std::vector<std::vector<KVCache*>> rows_of(const PromptCache& cache) {
  std::vector<std::vector<KVCache*>> rows;
  for (const CachePtr& layer : cache) {
    std::vector<Cache*> each{layer.get()};
    if (const auto* batch = dynamic_cast<const BatchCache*>(layer.get())) {
      const auto& counts = batch->num_tokens();
      if (std::ranges::any_of(counts, [](int n) { return n != 1; })) return {};
      each.clear();
      for (std::size_t i = 0; i < batch->count(); ++i) {
        each.push_back((*batch)[i].get());
      }
    }
    rows.resize(each.size());
    for (std::size_t i = 0; i < each.size(); ++i) {
      auto* own = dynamic_cast<KVCache*>(each[i]);
      if (own == nullptr) return {};
      rows[i].push_back(own);
    }
  }
  return rows;
}

void add_new(const std::optional<mx::array>& array,
             std::vector<mx::array>& arrays) {
  auto same = [&](const mx::array& each) { return each.id() == array->id(); };
  if (array && std::ranges::none_of(arrays, same)) arrays.push_back(*array);
}

}  // namespace

std::unique_ptr<DecoderStep> DecoderStep::make(
    const ArchSpec& spec,
    const kernels::Linear& embedding,
    const std::vector<Layer>& layers,
    const std::optional<kernels::Norm>& norm,
    const kernels::Linear& head,
    bool partial_head) {
  if (!is_plain(spec) || !norm) return nullptr;
  const auto& ranks = Ranks::all();
  kernels::StepSpec step{.embedding = &embedding,
                         .embedding_scale = spec.embedding_scale,
                         .rope = spec.ropes[0].at(1, 0),
                         .num_heads = spec.num_heads / ranks.size(),
                         .num_kv_heads = spec.num_kv_heads / ranks.size(),
                         .head_size = spec.head_size,
                         .residual_scale = spec.residual_scale,
                         .norm = &*norm,
                         .head = &head};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    auto layer = step_layer(spec, i, layers[i]);
    const auto* attention = std::get_if<nn::Attention>(&layers[i].mixer);
    if (!layer || attention->num_heads != step.num_heads ||
        attention->num_kv_heads != step.num_kv_heads) {
      return nullptr;
    }
    step.layers.push_back(*layer);
  }
  if (ranks.several()) {
    step.ranks = {
        ranks.rank(), ranks.size(), partial_head, [&](const auto& text) {
          return ranks.gather(text);
        }};
  }
  auto made = kernels::make_step(step);
  if (made == nullptr) return nullptr;
  return std::unique_ptr<DecoderStep>(new DecoderStep(step, std::move(made)));
}

DecoderStep::DecoderStep(const kernels::StepSpec& spec,
                         std::unique_ptr<kernels::Step> step)
    : step_(std::move(step)),
      num_layers_(spec.layers.size()),
      num_kv_heads_(spec.num_kv_heads),
      key_size_(spec.layers[0].k->weight.shape(0) / num_kv_heads_),
      value_size_(spec.layers[0].v->weight.shape(0) / num_kv_heads_) {}

std::optional<mx::array> DecoderStep::run(const mx::array& tokens,
                                          const PromptCache& cache) {
  if (cache.size() != num_layers_) return std::nullopt;
  const auto rows = rows_of(cache);
  if (rows.empty() || tokens.size() != rows.size() ||
      rows.size() > step_->most_rows()) {
    return std::nullopt;
  }
  std::vector<kernels::StepRow> places;
  std::vector<mx::array> after;
  for (const auto& row : rows) {
    auto place = place_of(row, after);
    if (!place) return std::nullopt;
    places.push_back(std::move(*place));
  }
  auto made = (*step_)(tokens, places, after);
  // The buffers change behind MLX's back: what reads them must come after this,
  // in another submission.
  mx::async_eval(made.logits);
  for (const auto& row : rows) {
    for (KVCache* each : row) each->took_in_place(made.written);
  }
  return made.logits;
}

// Adds what must be computed before the buffers are as they should be.
std::optional<kernels::StepRow> DecoderStep::place_of(
    const std::vector<KVCache*>& row, std::vector<mx::array>& after) const {
  kernels::StepRow place{.position = row[0]->offset()};
  auto fits = [&](const Rows& rows, int size) {
    const mx::array& buffer = rows.buffer();
    return step_->writes(buffer.dtype()) &&
           buffer.shape() ==
               mx::Shape{1, num_kv_heads_, row[0]->rows().count(), size};
  };
  for (KVCache* each : row) {
    if (each->offset() != place.position || !each->make_room_in_place()) {
      return std::nullopt;
    }
    const auto& [keys, values] = each->rows();
    if (!fits(keys, key_size_) || !fits(values, value_size_)) {
      return std::nullopt;
    }
    add_new(keys.written(), after);
    add_new(values.written(), after);
    place.layers.push_back({keys.buffer(), values.buffer()});
  }
  return place;
}

}  // namespace mlxlm
