// The decoder's pass over one layer.
#include <cmath>
#include <utility>

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "models/decoder.h"
#include "nn/sharding.h"

namespace mlxlm {

// What the layer's mixer, if it isn't attention, makes of x.
mx::array Decoder::mix(const Layer& layer,
                       const mx::array& x,
                       bool onto_stream,
                       Cache* cache,
                       Pass& pass) const {
  const auto* mixer = std::get_if<MixerPtr>(&layer.mixer);
  if (mixer == nullptr) return x;
  auto run = [&](const mx::array& own,
                 Cache* own_cache,
                 std::span<const kernels::TokenRun> runs) {
    return (**mixer)({own,
                      pointer(layer.attention_norm),
                      own_cache,
                      runs,
                      &pass.shared,
                      &pass.compressed},
                     {pointer(layer.attention_output_norm),
                      onto_stream ? &own : nullptr,
                      spec_.residual_scale});
  };
  if (pass.runs.size() == 1 || !depends_on_chunks()) {
    return run(x, cache, pass.runs);
  }
  auto next = pass.runs.begin();  // ropes differ from row to row
  return each_row(x, cache, [&](const mx::array& own, Cache* own_cache) {
    return run(own, own_cache, {&*next++, 1});
  });
}

std::optional<Decoder::Heads> Decoder::attend(const Layer& layer,
                                              const mx::array& x,
                                              Caches caches,
                                              Pass& pass) const {
  const auto* norm = pointer(layer.attention_norm);
  if (auto* attention = std::get_if<nn::Attention>(&layer.mixer)) {
    auto* projected = passes_keys_on_ ? &pass.projected : nullptr;
    return Heads{
        attention->attend(x, norm, caches.own, caches.other, projected),
        &attention->o,
        attention->partial};
  }
  if (auto* latent = std::get_if<nn::LatentAttention>(&layer.mixer)) {
    return Heads{latent->attend(x, norm, caches.own), &latent->o};
  }
  return std::nullopt;
}

mx::array Decoder::first_part(const Layer& layer,
                              const mx::array& x,
                              const std::optional<Heads>& heads,
                              bool onto_stream,
                              Caches caches,
                              Pass& pass) const {
  if (!heads) return mix(layer, x, onto_stream, caches.own, pass);
  return nn::linear_residual(nn::in_token_order(heads->answers),
                             *heads->out,
                             {pointer(layer.attention_output_norm),
                              onto_stream ? &x : nullptr,
                              spec_.residual_scale},
                             heads->partial);
}

mx::array Decoder::second_part(const Layer& layer,
                               const mx::array& x,
                               const kernels::Norm* norm,
                               const mx::array* stream,
                               const Pass& pass) const {
  const nn::Residual residual{
      pointer(layer.mlp_output_norm), stream, spec_.residual_scale};
  if (auto* mlp = std::get_if<nn::Mlp>(&layer.mlp)) {
    return (*mlp)(x, norm, residual);
  }
  if (auto* linear = std::get_if<kernels::Linear>(&layer.mlp)) {
    return kernels::table().linear_residual(
        norm ? kernels::table().norm(x, *norm) : x,
        *linear,
        residual.post_norm,
        residual.stream,
        residual.scale);
  }
  const auto* experts = std::get_if<nn::Experts>(&layer.mlp);
  return experts != nullptr ? (*experts)(x, norm, residual, pass.tokens) : x;
}

mx::array Decoder::run(const Layer& layer,
                       const mx::array& x,
                       Caches caches,
                       Pass& pass) const {
  if (layer.depth) return run_over_depth(layer, x, caches, pass);
  if (layer.hyper) return run_hyper(layer, x, caches, pass);
  const auto heads = attend(layer, x, caches, pass);
  const auto* dense = std::get_if<nn::Mlp>(&layer.mlp);
  const bool plain = heads && !heads->partial && !spec_.parallel &&
                     !layer.laurel && !layer.shortcut && !layer.attention_mix;
  if (dense != nullptr && dense->fusible() && !dense->partial && plain) {
    return kernels::finish_layer(
        kernels::table(),
        heads->answers,
        x,
        {.out = heads->out,
         .out_norm = pointer(layer.attention_output_norm),
         .mlp_norm = pointer(layer.mlp_norm),
         .gate = dense->gate ? &*dense->gate : nullptr,
         .up = &dense->up,
         .down = &dense->down,
         .down_norm = pointer(layer.mlp_output_norm),
         .activation = dense->activation,
         .scale = spec_.residual_scale});
  }
  auto h = first_part(layer, x, heads, !layer.attention_mix, caches, pass);
  if (layer.attention_mix) h = (*layer.attention_mix)(x, h);
  const auto* attention_norm = pointer(layer.attention_norm);
  if (layer.laurel) {
    auto around = (*layer.laurel)(kernels::table().norm(x, *attention_norm));
    h = mx::multiply(mx::add(h, around),
                     mx::array(static_cast<float>(std::sqrt(0.5)), h.dtype()));
  }
  if (std::holds_alternative<std::monostate>(layer.mlp)) return h;
  auto mlp_input = spec_.parallel ? nn::after(x, h) : h;
  const bool shared_norm = spec_.parallel && !layer.mlp_norm;
  const auto* mlp_norm = shared_norm ? attention_norm : pointer(layer.mlp_norm);
  if (layer.shortcut) {
    pass.shortcut = (*layer.shortcut)(mlp_input, mlp_norm, {});
    mlp_input = nn::after(mlp_input, *pass.shortcut);
  }
  auto y = second_part(
      layer, mlp_input, mlp_norm, layer.mlp_mix ? nullptr : &h, pass);
  return layer.mlp_mix ? (*layer.mlp_mix)(h, y) : y;
}

// Attention and MLP read a mixture of the stream and of what earlier blocks of
// layers left; a block begins its own stream.
mx::array Decoder::run_over_depth(const Layer& layer,
                                  const mx::array& x,
                                  Caches caches,
                                  Pass& pass) const {
  const auto& depth = *layer.depth;
  const auto input = pass.blocks.mix(x, depth.attention);
  if (depth.begins_block) pass.blocks.append(x);
  auto y = first_part(layer,
                      input,
                      attend(layer, input, caches, pass),
                      /*onto_stream=*/false,
                      caches,
                      pass);
  const auto h = depth.begins_block ? y : mx::add(x, y);
  return second_part(
      layer, pass.blocks.mix(h, depth.mlp), pointer(layer.mlp_norm), &h, pass);
}

// streams [B, L, S, D], of which each part reads a mixture that it chooses or
// that the one before it chose.
mx::array Decoder::run_hyper(const Layer& layer,
                             const mx::array& streams,
                             Caches caches,
                             Pass& pass) const {
  const auto mix = layer.hyper->attention(streams);
  const bool at_once = spec_.hyper->reads_at_once;
  const auto x = nn::collapse(streams, at_once ? mix.read : *pass.read);
  const auto y = first_part(layer,
                            x,
                            attend(layer, x, caches, pass),
                            /*onto_stream=*/false,
                            caches,
                            pass);
  const auto h = nn::expand(y, streams, mix);
  auto next = layer.hyper->mlp(h);
  const auto z = second_part(layer,
                             nn::collapse(h, at_once ? next.read : mix.read),
                             pointer(layer.mlp_norm),
                             /*stream=*/nullptr,
                             pass);
  pass.read = next.read;
  return nn::expand(z, h, next);
}

mx::array Decoder::run_alone(const Layer& layer,
                             const mx::array& x,
                             Cache* cache) const {
  Pass pass{.runs = token_runs(cache, x.shape(1))};
  return run(layer, x, {.own = cache}, pass);
}

// streams and per_layer_input as in nn::AltUp and nn::PerLayerGate.
mx::array Decoder::run_streams(const Layer& layer,
                               const mx::array& streams,
                               const mx::array& per_layer_input,
                               Caches caches,
                               Pass& pass) const {
  const auto& altup = *layer.altup;
  auto predictions = altup.predict(streams);
  auto activated =
      run(layer, nn::stream(predictions, altup.active), caches, pass);
  auto corrected = altup.correct(predictions, activated);
  auto first = nn::stream(corrected, altup.active);
  if (layer.altup_output_scale) {
    first = mx::multiply(first, *layer.altup_output_scale);
  }
  auto added = (*layer.per_layer_gate)(first, per_layer_input);
  auto parts = mx::split(corrected, mx::Shape{1}, 0);
  return mx::concatenate({parts[0], mx::add(parts[1], added)}, 0);
}

}  // namespace mlxlm
