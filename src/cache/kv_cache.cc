#include "cache/kv_cache.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "cache/quantized_cache.h"
#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {

std::size_t KVCache::nbytes() const {
  return nbytes_of(content_.keys) + nbytes_of(content_.values);
}

std::pair<mx::array, mx::array> KVCache::update(const mx::array& keys,
                                                const mx::array& values) {
  append_rows(content_.keys, keys, content_.offset);
  append_rows(content_.values, values, content_.offset);
  content_.offset += keys.shape(2);
  return keys_and_values();
}

std::pair<mx::array, mx::array> KVCache::keys_and_values() const {
  return {rows_of(*content_.keys, 0, content_.offset),
          rows_of(*content_.values, 0, content_.offset)};
}

int KVCache::trim(int num_tokens) {
  int trimmed = std::clamp(num_tokens, 0, content_.offset);
  content_.offset -= trimmed;
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> KVCache::checkpoint() const {
  return make_checkpoint(content_);
}

void KVCache::rollback(const CacheCheckpoint& checkpoint) {
  content_ = content_of<Content>(checkpoint, kind());
}

std::shared_ptr<Cache> KVCache::to_quantized(int group_size, int bits) const {
  return QuantizedKVCache::from(
      content_.keys, content_.values, content_.offset, group_size, bits);
}

CacheState KVCache::state() const {
  return state_list(content_.keys, content_.values, content_.offset);
}

void KVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  reader.expect_size(3);
  auto held = reader.keys_and_values();
  content_ = {held.keys, held.values, reader.integer(2, 0, held.tokens)};
}

void KVCache::append_arrays_to(std::vector<mx::array>& out) const {
  if (content_.keys) {
    out.push_back(*content_.keys);
    out.push_back(*content_.values);
  }
}

CachePtr make_kv_cache() { return std::make_shared<KVCache>(); }

}  // namespace mlxlm
