#include "cache/kv_cache.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "cache/state_reader.h"

namespace mlxlm {

CacheCapabilities KVCache::capabilities() const {
  auto quantization = quantization_of(rows_);
  return {.attends = true,
          .trimmable_tokens = offset_,
          .always_trimmable = true,
          .quantizable = !quantization,
          .quantization = quantization,
          .checkpoint_bytes = 0};
}

std::optional<RoomInPlace> KVCache::room_in_place(const mx::array& k,
                                                  const mx::array& v,
                                                  int num_tokens,
                                                  const AttendSpec& spec) {
  if (rows_.keys.format().quantized() || !reads_rows_as_they_are(spec)) {
    return std::nullopt;
  }
  rows_.reserve(rows_.shaped_as(k, v), num_tokens, offset_);
  if (!rows_.sole()) return std::nullopt;
  Mask mask =
      spec.causal ? make_mask(num_tokens, spec.window_tokens) : Mask::none();
  const int at = offset_;
  offset_ += num_tokens;
  return RoomInPlace{&rows_, at, offset_, std::move(mask)};
}

mx::array KVCache::attend_again(const mx::array& q, const AttendSpec& spec) {
  const int num_queries = q.shape(2);
  return attend_to(
      keys_and_values(),
      q,
      spec,
      attention_mask(num_queries, offset_ - num_queries, spec.window_tokens));
}

KeysAndValues KVCache::update(const mx::array& keys, const mx::array& values) {
  rows_.append(rows_.encoded(keys, values), offset_);
  offset_ += keys.shape(2);
  return keys_and_values();
}

bool KVCache::make_room_in_place() {
  if (rows_.empty() || rows_.keys.format().quantized() || !rows_.sole()) {
    return false;
  }
  if (rows_.count() <= offset_) rows_.reserve(rows_, 1, offset_);
  return true;
}

void KVCache::took_in_place(const mx::array& written) {
  rows_.keys.written_by(written);
  rows_.values.written_by(written);
  ++offset_;
}

int KVCache::trim(int num_tokens) {
  int trimmed = std::clamp(num_tokens, 0, offset_);
  marks_.before_cut(offset_ - trimmed, rows_);
  offset_ -= trimmed;
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> KVCache::checkpoint() const {
  return marks_.mark(offset_);
}

void KVCache::rollback(const CacheCheckpoint& checkpoint) {
  auto [offset, kept] = marks_.find(checkpoint, kind());
  marks_.before_cut(kept ? 0 : offset, rows_);
  if (kept) {
    rows_ = std::move(*kept);
  }
  offset_ = offset;
}

CachePtr KVCache::to_quantized(const KvQuantization& quantization) const {
  if (rows_.keys.format().quantized()) {
    return nullptr;
  }
  return std::make_shared<KVCache>(quantized_copy(rows_, quantization),
                                   offset_);
}

// Without the room that mapped files are given.
CacheState KVCache::state() const {
  rows_.share();
  const int kept = (std::max(offset_, 1) + kCacheStepTokens - 1) /
                   kCacheStepTokens * kCacheStepTokens;
  const bool roomy = rows_.count() - offset_ > kCacheStepTokens;
  return state_with(roomy ? rows_.slice(0, kept) : rows_, {offset_});
}

void KVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  auto rows = reader.keys_and_values(1, rows_.keys.format().quantized());
  int offset = reader.integer(2, 0, rows.count());
  marks_.before_cut(0, rows_);
  rows_ = std::move(rows);
  offset_ = offset;
}

CachePtr make_kv_cache() { return std::make_shared<KVCache>(); }

CachePtr make_quantized_cache(const KvQuantization& quantization) {
  return std::make_shared<KVCache>(quantization);
}

}  // namespace mlxlm
