#include "models/traits.h"

#include <utility>
#include <variant>
#include <vector>

namespace mlxlm {
namespace {

// What a layer's mixer is, where it isn't attention alone.
enum class MixerKind { recurrent, with_attention, compressed, linear };

MixerKind kind_of(const MixerSpec& mixer) {
  if (std::holds_alternative<LinearMixerSpec>(mixer)) return MixerKind::linear;
  if (std::holds_alternative<CompressedAttentionSpec>(mixer)) {
    return MixerKind::compressed;
  }
  const bool attends = std::holds_alternative<SideBySideSpec>(mixer) ||
                       std::holds_alternative<ConvAttentionSpec>(mixer);
  return attends ? MixerKind::with_attention : MixerKind::recurrent;
}

Traits traits_of_mixer(const ArchSpec& spec, const LayerSpec& layer) {
  if (layer.mixer < 0) return 0;
  switch (kind_of(spec.mixers[layer.mixer])) {
    case MixerKind::linear:
      return 0;
    case MixerKind::compressed:
      return trait::index | trait::windows;
    default:
      return trait::recurrent;
  }
}

bool attends(const ArchSpec& spec, const LayerSpec& layer) {
  if (layer.mixer < 0) return layer.mixer == kAttention;
  const auto kind = kind_of(spec.mixers[layer.mixer]);
  return kind == MixerKind::with_attention || kind == MixerKind::compressed;
}

Traits traits_of_cache(const ArchSpec& spec, const LayerSpec& layer) {
  if (layer.mixer >= 0) {
    const auto kind = kind_of(spec.mixers[layer.mixer]);
    if (kind == MixerKind::linear) return 0;
    return kind == MixerKind::recurrent ? trait::state : trait::lists;
  }
  if (layer.cache_list > 0) return trait::lists;
  if (layer.rotating_cache) return trait::rotating;
  return layer.chunk_tokens > 0 ? trait::chunks : 0;
}

Traits traits_of_layer(const LayerSpec& layer) {
  Traits traits = 0;
  if (layer.experts || layer.shortcut) traits |= trait::experts;
  if (layer.block_index) traits |= trait::index;
  if (layer.window_tokens > 0) traits |= trait::windows;
  if (layer.chunk_tokens > 0) traits |= trait::chunks;
  if (layer.keys_of >= 0 || layer.weights_of >= 0 || layer.projects_no_keys ||
      layer.cache_part > 0) {
    traits |= trait::shared;
  }
  return traits;
}

std::string joined(const std::vector<std::pair<bool, const char*>>& words) {
  std::string text;
  for (const auto& [holds, word] : words) {
    if (holds) text += (text.empty() ? "" : ", ") + std::string(word);
  }
  return text;
}

}  // namespace

Traits traits_of(const ArchSpec& spec) {
  Traits traits = trait::pure | trait::bounded;
  if (spec.latent) traits |= trait::latent;
  if (spec.latent && spec.latent->index.num_heads > 0) traits |= trait::index;
  if (spec.per_layer_input || spec.ngram) traits |= trait::side;
  if (spec.ngram) traits |= trait::state;
  if (spec.own_caches) traits |= trait::fixed;
  for (const auto& layer : spec.layers) {
    traits |= traits_of_layer(layer) | traits_of_mixer(spec, layer);
    if (layer.mixer == kNoMixer) continue;
    if (attends(spec, layer)) traits &= ~trait::pure;
    if (layer.keys_of >= 0 || layer.cache_part > 0) continue;
    const auto cache = traits_of_cache(spec, layer);
    traits |= cache;
    if (cache == 0) traits &= ~trait::bounded;
  }
  return traits;
}

std::string layers_text(Traits traits) {
  auto has = [&](Traits trait) { return (traits & trait) != 0; };
  const bool attends = !has(trait::pure);
  return joined({{attends && has(trait::latent), "latent attention"},
                 {attends && !has(trait::latent), "attention"},
                 {has(trait::recurrent), "recurrent"},
                 {has(trait::index), "indexer"},
                 {has(trait::windows), "windows"},
                 {has(trait::chunks), "chunks"},
                 {has(trait::shared), "shared parts"},
                 {has(trait::side), "further embeddings"},
                 {has(trait::experts), "experts"}});
}

std::string caches_text(Traits traits) {
  auto has = [&](Traits trait) { return (traits & trait) != 0; };
  return joined({{!has(trait::bounded), "KVCache"},
                 {has(trait::rotating), "RotatingKVCache"},
                 {has(trait::chunks), "ChunkedKVCache"},
                 {has(trait::lists), "CacheList"},
                 {has(trait::state), "ArraysCache"}});
}

}  // namespace mlxlm
