// The decoder's caches: which of them are whose.
#include <algorithm>
#include <string>

#include <mlxlm/error.h>

#include "cache/arrays_cache.h"
#include "cache/batch_cache.h"
#include "cache/cache_list.h"
#include "cache/chunked_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "models/decoder.h"

namespace mlxlm {
namespace {

// Whether an entry of the prompt cache begins with this layer.
bool begins_entry(const LayerSpec& layer) {
  return layer.mixer != kNoMixer && layer.keys_of < 0 &&
         (layer.cache_part < 0 || layer.cache_list > 0);
}

// One of the caches of a list or, in a batch, of each row's list.
CachePtr part_of(const CachePtr& entry, int index) {
  if (auto* batch = dynamic_cast<BatchCache*>(entry.get())) {
    std::vector<CachePtr> rows;
    for (std::size_t i = 0; i < batch->count(); ++i) {
      rows.push_back(part_of((*batch)[i], index));
    }
    return std::make_shared<BatchCache>(std::move(rows), batch->num_tokens());
  }
  auto* list = dynamic_cast<CacheList*>(entry.get());
  if (list == nullptr) {
    throw Error(ErrorKind::argument,
                "the model needs a CacheList here, the prompt cache has a " +
                    std::string(entry->kind()));
  }
  return (*list)[index];
}

CachePtr make_list_of(int count) {
  std::vector<CachePtr> parts;
  for (int i = 0; i < count; ++i) parts.push_back(make_kv_cache());
  return make_cache_list(std::move(parts));
}

}  // namespace

void Decoder::index_caches() {
  if (ngram_embedding_) ++num_caches_;
  for (const auto& layer : spec_.layers) {
    if (begins_entry(layer)) ++num_caches_;
    cache_index_.push_back(layer.mixer == kNoMixer ? -1
                           : layer.keys_of >= 0 ? cache_index_.at(layer.keys_of)
                                                : num_caches_ - 1);
  }
}

std::vector<CachePtr> Decoder::layer_caches(const PromptCache& given) const {
  // Layers that read others' keys need caches to read them from.
  const bool shares = std::ranges::any_of(spec_.layers, [](const auto& layer) {
    return layer.keys_of >= 0 || layer.also_reads >= 0;
  });
  const auto cache = given.empty() && shares ? make_cache(0) : given;
  if (cache.empty()) return {};
  std::vector<CachePtr> caches(spec_.layers.size());
  for (std::size_t i = 0; i < caches.size(); ++i) {
    if (cache_index_[i] < 0) continue;
    const auto& entry = cache[cache_index_[i]];
    const int part = spec_.layers[i].cache_part;
    caches[i] = part < 0 ? entry : part_of(entry, part);
  }
  return caches;
}

CachePtr Decoder::make_layer_cache(const LayerSpec& layer,
                                   int max_kv_size) const {
  if (layer.cache_list > 0) return make_list_of(layer.cache_list);
  if (layer.rotating_cache) return make_rotating_cache(layer.window_tokens);
  if (layer.chunk_tokens > 0) return make_chunked_cache(layer.chunk_tokens);
  if (max_kv_size > 0 && !spec_.own_caches) {
    return make_rotating_cache(max_kv_size, 4);
  }
  return make_kv_cache();
}

PromptCache Decoder::make_cache(int max_kv_size) const {
  const bool halves = !float32_weights_ && kernels::keeps_halves();
  PromptCache cache;
  cache.reserve(num_caches_);
  if (ngram_embedding_) cache.push_back(make_arrays_cache(1));
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const auto& layer = spec_.layers[i];
    if (!begins_entry(layer)) continue;
    auto* mixer = std::get_if<MixerPtr>(&layers_[i].mixer);
    cache.push_back(mixer != nullptr ? (*mixer)->make_cache()
                                     : make_layer_cache(layer, max_kv_size));
    auto* attention = dynamic_cast<AttentionCache*>(cache.back().get());
    if (halves && attention != nullptr &&
        std::holds_alternative<nn::Attention>(layers_[i].mixer)) {
      attention->keep_halves();
    }
  }
  return cache;
}

}  // namespace mlxlm
