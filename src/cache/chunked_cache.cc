#include "cache/chunked_cache.h"

#include <algorithm>
#include <climits>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {

namespace {

// The first chunk boundary at or after `position`.
std::int64_t boundary_from(std::int64_t position, int chunk_size) {
  return (position + chunk_size - 1) / chunk_size * chunk_size;
}

}  // namespace

ChunkedKVCache::ChunkedKVCache(
    int chunk_size, const std::optional<KvQuantization>& quantization) {
  if (chunk_size <= 0) {
    throw Error(ErrorKind::argument,
                "a chunked cache needs chunks of at least one token, not " +
                    std::to_string(chunk_size));
  }
  content_.rows = empty_rows(quantization);
  content_.chunk_size = chunk_size;
}

CacheCapabilities ChunkedKVCache::capabilities() const {
  const auto& c = content_;
  auto quantization = quantization_of(c.rows);
  std::int64_t whole = c.offset - boundary_from(c.start, c.chunk_size);
  return {.attends = true,
          .trimmable_tokens = std::max(0, static_cast<int>(whole)),
          .quantizable = !quantization,
          .quantization = quantization,
          .checkpoint_bytes = nbytes()};
}

bool ChunkedKVCache::is_trimmable_after(int num_tokens) const {
  // Read one by one, the last update drops the most.
  const auto& c = content_;
  std::int64_t start = std::max<std::int64_t>(
      c.start, std::int64_t{c.offset} + num_tokens - 1 - c.chunk_size);
  return boundary_from(start, c.chunk_size) <= c.offset;
}

void ChunkedKVCache::trim_front() {
  auto& c = content_;
  int held = size();
  if (c.rows.empty() || held <= c.chunk_size) {
    return;
  }
  int surplus = held - c.chunk_size;
  c.start += surplus;
  c.rows = c.rows.slice(surplus, held);
}

mx::array ChunkedKVCache::attend(const mx::array& q,
                                 const mx::array& k,
                                 const mx::array& v,
                                 const AttendSpec& spec) {
  trim_front();
  return AttentionCache::attend(q, k, v, spec);
}

// As in the reference's llama4: earlier tokens of the same chunk.
Mask ChunkedKVCache::make_mask(int num_queries, int, bool) const {
  const auto& c = content_;
  int end = c.offset + num_queries;
  auto keys = mx::expand_dims(mx::arange(c.start, end), 0);
  auto queries = mx::expand_dims(mx::arange(c.offset, end), 1);
  auto size = mx::array(c.chunk_size);
  auto same_chunk =
      mx::equal(mx::floor_divide(keys, size), mx::floor_divide(queries, size));
  return Mask::of(mx::logical_and(same_chunk, mx::less_equal(keys, queries)));
}

KeysAndValues ChunkedKVCache::update(const mx::array& keys,
                                     const mx::array& values) {
  auto& c = content_;
  c.rows.append(c.rows.encoded(keys, values), size());
  c.offset += keys.shape(2);
  return keys_and_values();
}

// The reference trims whatever is held and then attends to too little of the
// chunk.
int ChunkedKVCache::trim(int num_tokens) {
  int trimmed = std::clamp(num_tokens, 0, capabilities().trimmable_tokens);
  content_.offset -= trimmed;
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> ChunkedKVCache::checkpoint() const {
  return make_checkpoint(content_);
}

void ChunkedKVCache::rollback(const CacheCheckpoint& checkpoint) {
  content_ = content_of<Content>(checkpoint, kind());
}

CachePtr ChunkedKVCache::to_quantized(
    const KvQuantization& quantization) const {
  if (quantized()) {
    return nullptr;
  }
  auto copy = std::make_shared<ChunkedKVCache>(*this);
  copy->content_.rows = quantized_copy(content_.rows, quantization);
  return copy;
}

CacheState ChunkedKVCache::state() const {
  const auto& c = content_;
  return state_with(c.rows, {c.offset, c.chunk_size, c.start});
}

void ChunkedKVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  Content content;
  content.rows = reader.keys_and_values(3, quantized());
  content.chunk_size = reader.integer(3, 1, INT_MAX);
  content.start = reader.integer(4, 0, content.rows.empty() ? 0 : INT_MAX / 2);
  content.offset =
      reader.integer(2, content.start, content.start + content.rows.count());
  content_ = std::move(content);
}

CachePtr make_chunked_cache(int chunk_size,
                            const std::optional<KvQuantization>& quantization) {
  return std::make_shared<ChunkedKVCache>(chunk_size, quantization);
}

}  // namespace mlxlm
