#include "cache/concatenate_cache.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "cache/kv_cache.h"

namespace mlxlm {

CacheCapabilities ConcatenateKVCache::capabilities() const {
  return {.attends = true,
          .trimmable_tokens = offset(),
          .always_trimmable = true,
          .quantizable = true};
}

KeysAndValues ConcatenateKVCache::update(const mx::array& keys,
                                         const mx::array& values) {
  KeysAndValues rows = rows_.encoded(keys, values);
  rows_.check_fit(rows);
  rows_ = rows_.empty() ? rows : rows_.followed_by(rows);
  return rows_;
}

void ConcatenateKVCache::cut_to(int offset) {
  marks_.before_cut(offset, rows_);
  rows_ = offset == 0 ? KeysAndValues() : rows_.slice(0, offset);
}

// The reference only lowers its offset, and its next update sees the dropped
// tokens again; here they are gone.
int ConcatenateKVCache::trim(int num_tokens) {
  int trimmed = std::clamp(num_tokens, 0, offset());
  if (trimmed > 0) {
    cut_to(offset() - trimmed);
  }
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> ConcatenateKVCache::checkpoint() const {
  return marks_.mark(offset());
}

void ConcatenateKVCache::rollback(const CacheCheckpoint& checkpoint) {
  auto [offset, kept] = marks_.find(checkpoint, kind());
  if (kept) {
    marks_.before_cut(0, rows_);
    rows_ = std::move(*kept);
  }
  cut_to(offset);
}

CachePtr ConcatenateKVCache::to_quantized(
    const KvQuantization& quantization) const {
  return std::make_shared<KVCache>(quantized_copy(rows_, quantization),
                                   offset());
}

void ConcatenateKVCache::set_state(const CacheState& state) {
  auto rows = StateReader(kind(), state).keys_and_values(0, false);
  marks_.before_cut(0, rows_);
  rows_ = std::move(rows);
}

CachePtr make_concatenate_cache() {
  return std::make_shared<ConcatenateKVCache>();
}

}  // namespace mlxlm
