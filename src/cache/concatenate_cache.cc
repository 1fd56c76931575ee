#include "cache/concatenate_cache.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {

std::size_t ConcatenateKVCache::nbytes() const {
  return nbytes_of(content_.keys) + nbytes_of(content_.values);
}

std::pair<mx::array, mx::array> ConcatenateKVCache::update(
    const mx::array& keys, const mx::array& values) {
  auto& c = content_;
  if (c.keys) {
    check_same_rows(*c.keys, keys);
    check_same_rows(*c.values, values);
    c.keys = mx::concatenate({*c.keys, keys}, 2);
    c.values = mx::concatenate({*c.values, values}, 2);
  } else {
    c.keys = keys;
    c.values = values;
  }
  c.offset = c.keys->shape(2);
  return {*c.keys, *c.values};
}

// The reference only lowers its offset, and its next update sees the dropped
// tokens again; here they are gone.
int ConcatenateKVCache::trim(int num_tokens) {
  auto& c = content_;
  int trimmed = std::clamp(num_tokens, 0, c.offset);
  if (trimmed > 0) {
    c.offset -= trimmed;
    c.keys = rows_of(*c.keys, 0, c.offset);
    c.values = rows_of(*c.values, 0, c.offset);
  }
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> ConcatenateKVCache::checkpoint() const {
  return make_checkpoint(content_);
}

void ConcatenateKVCache::rollback(const CacheCheckpoint& checkpoint) {
  content_ = content_of<Content>(checkpoint, kind());
}

CacheState ConcatenateKVCache::state() const {
  return state_list(content_.keys, content_.values);
}

void ConcatenateKVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  reader.expect_size(2);
  auto held = reader.keys_and_values();
  content_ = {held.keys, held.values, held.tokens};
}

void ConcatenateKVCache::append_arrays_to(std::vector<mx::array>& out) const {
  if (content_.keys) {
    out.push_back(*content_.keys);
    out.push_back(*content_.values);
  }
}

CachePtr make_concatenate_cache() {
  return std::make_shared<ConcatenateKVCache>();
}

}  // namespace mlxlm
