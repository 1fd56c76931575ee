#include "nn/side_by_side.h"

#include <mlxlm/error.h>

#include "cache/batch_cache.h"
#include "cache/cache_list.h"
#include "cache/kv_cache.h"

namespace mlxlm::nn {

CachePtr AttentionMixer::make_cache() const { return make_kv_cache(); }

CachePtr SideBySide::make_cache() const {
  std::vector<CachePtr> caches;
  for (const auto& mixer : mixers_) caches.push_back(mixer->make_cache());
  return make_cache_list(std::move(caches));
}

std::vector<kernels::Linear*> SideBySide::linears() {
  std::vector<kernels::Linear*> all;
  for (const auto& mixer : mixers_) {
    for (auto* each : mixer->linears()) all.push_back(each);
  }
  return all;
}

mx::array SideBySide::operator()(const MixerInput& input,
                                 const Residual& residual) const {
  // Each adds its answer to what the ones before it made.
  auto sum = residual.stream != nullptr ? *residual.stream : input.x;
  for (std::size_t i = 0; i < mixers_.size(); ++i) {
    const auto cache = cache_part(input.cache, i, mixers_.size());
    auto own = input;
    own.cache = cache.get();
    const bool adds = i > 0 || residual.stream != nullptr;
    sum = (*mixers_[i])(
        own, {.stream = adds ? &sum : nullptr, .scale = residual.scale});
  }
  return sum;
}

CachePtr cache_part(Cache* cache, std::size_t index, std::size_t count) {
  if (cache == nullptr) return nullptr;
  if (auto* batch = dynamic_cast<BatchCache*>(cache)) {
    std::vector<CachePtr> rows;
    for (std::size_t i = 0; i < batch->count(); ++i) {
      rows.push_back(cache_part((*batch)[i].get(), index, count));
    }
    return std::make_shared<BatchCache>(std::move(rows), batch->num_tokens());
  }
  auto* list = dynamic_cast<CacheList*>(cache);
  if (list == nullptr || list->count() != count) {
    throw Error(ErrorKind::argument,
                "a layer of several parts needs a CacheList of " +
                    std::to_string(count) + ", not a " +
                    std::string(cache->kind()));
  }
  return (*list)[index];
}

}  // namespace mlxlm::nn
