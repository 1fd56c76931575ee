#include "cache/chunked_cache.h"

#include <algorithm>
#include <climits>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {

ChunkedKVCache::ChunkedKVCache(int chunk_size) {
  if (chunk_size <= 0) {
    throw Error(ErrorKind::argument,
                "a chunked cache needs chunks of at least one token, not " +
                    std::to_string(chunk_size));
  }
  content_.chunk_size = chunk_size;
}

std::size_t ChunkedKVCache::nbytes() const {
  return nbytes_of(content_.keys) + nbytes_of(content_.values);
}

void ChunkedKVCache::trim_front() {
  auto& c = content_;
  int held = size();
  if (!c.keys || held <= c.chunk_size) {
    return;
  }
  int surplus = held - c.chunk_size;
  c.start += surplus;
  c.keys = rows_of(*c.keys, surplus, held);
  c.values = rows_of(*c.values, surplus, held);
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

std::pair<mx::array, mx::array> ChunkedKVCache::update(
    const mx::array& keys, const mx::array& values) {
  auto& c = content_;
  append_rows(c.keys, keys, size());
  append_rows(c.values, values, size());
  c.offset += keys.shape(2);
  return {rows_of(*c.keys, 0, size()), rows_of(*c.values, 0, size())};
}

int ChunkedKVCache::trim(int num_tokens) {
  int trimmed = std::clamp(num_tokens, 0, size());
  content_.offset -= trimmed;
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> ChunkedKVCache::checkpoint() const {
  return make_checkpoint(content_);
}

void ChunkedKVCache::rollback(const CacheCheckpoint& checkpoint) {
  content_ = content_of<Content>(checkpoint, kind());
}

CacheState ChunkedKVCache::state() const {
  const auto& c = content_;
  return state_list(c.keys, c.values, c.offset, c.chunk_size, c.start);
}

void ChunkedKVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  reader.expect_size(5);
  auto held = reader.keys_and_values();
  Content content;
  content.keys = held.keys;
  content.values = held.values;
  content.chunk_size = reader.integer(3, 1, INT_MAX);
  content.start = reader.integer(4, 0, held.keys ? INT_MAX / 2 : 0);
  content.offset =
      reader.integer(2, content.start, content.start + held.tokens);
  content_ = std::move(content);
}

void ChunkedKVCache::append_arrays_to(std::vector<mx::array>& out) const {
  if (content_.keys) {
    out.push_back(*content_.keys);
    out.push_back(*content_.values);
  }
}

CachePtr make_chunked_cache(int chunk_size) {
  return std::make_shared<ChunkedKVCache>(chunk_size);
}

}  // namespace mlxlm
