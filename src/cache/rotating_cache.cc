#include "cache/rotating_cache.h"

#include <algorithm>
#include <climits>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {

RotatingKVCache::RotatingKVCache(int max_size, int keep) {
  if (keep < 0 || max_size <= keep) {
    throw Error(ErrorKind::argument,
                "a rotating cache of " + std::to_string(max_size) +
                    " tokens can't keep the first " + std::to_string(keep) +
                    ": the size must be larger");
  }
  content_.max_size = max_size;
  content_.keep = keep;
}

int RotatingKVCache::size() const {
  return std::min(content_.offset, content_.max_size);
}

std::size_t RotatingKVCache::nbytes() const {
  return nbytes_of(content_.keys) + nbytes_of(content_.values);
}

Mask RotatingKVCache::make_mask(int num_queries,
                                int window_tokens,
                                bool want_array) const {
  const auto& c = content_;
  if (num_queries > 1) {
    int window = window_tokens > 0 ? window_tokens : c.max_size;
    int offset = std::min(c.max_size - 1, c.offset);
    if (offset + num_queries > window || want_array) {
      return Mask::of(kernels::causal_mask(
          num_queries, offset + num_queries, offset, window));
    }
    return Mask::causally();
  }
  // One token sees all that is held, unless its window is smaller than that.
  if (window_tokens <= 0 || c.offset < window_tokens ||
      c.max_size <= window_tokens) {
    return Mask::none();
  }
  int index = c.index >= c.max_size ? 0 : c.index;
  int num_keys = std::min(c.offset + 1, c.max_size);
  auto newest = mx::greater_equal(mx::arange(num_keys),
                                  mx::array(num_keys - window_tokens));
  return Mask::of(mx::roll(newest, index + 1));
}

// The rows from oldest to newest, without unused ones at the end.
mx::array RotatingKVCache::in_order(const mx::array& held) const {
  const auto& c = content_;
  int num_rows = held.shape(2);
  if (c.index == num_rows) {
    return held;
  }
  if (c.index < c.offset) {
    return mx::concatenate({rows_of(held, 0, c.keep),
                            rows_of(held, c.index, num_rows),
                            rows_of(held, c.keep, c.index)},
                           2);
  }
  return rows_of(held, 0, c.index);
}

// Without the `num_rows` rows that follow the first `keep`.
mx::array RotatingKVCache::without_oldest(const mx::array& held,
                                          int num_rows) const {
  if (num_rows <= 0) {
    return held;
  }
  int keep = std::min(content_.keep, held.shape(2));
  int from = std::min(keep + num_rows, held.shape(2));
  return mx::concatenate(
      {rows_of(held, 0, keep), rows_of(held, from, held.shape(2))}, 2);
}

void RotatingKVCache::append_several(const mx::array& keys,
                                     const mx::array& values) {
  auto& c = content_;
  if (!c.keys) {
    c.keys = keys;
    c.values = values;
  } else {
    auto held_keys = in_order(*c.keys);
    auto held_values = in_order(*c.values);
    // max_size - 1 rows stay, so that the first new token, too, sees max_size.
    int surplus = held_keys.shape(2) - c.max_size + 1;
    c.keys = mx::concatenate({without_oldest(held_keys, surplus), keys}, 2);
    c.values =
        mx::concatenate({without_oldest(held_values, surplus), values}, 2);
  }
  c.offset += keys.shape(2);
  c.index = c.keys->shape(2);
}

// Makes room for one more row, while fewer than max_size are there.
void RotatingKVCache::grow(const mx::array& keys, const mx::array& values) {
  auto& c = content_;
  if (c.keys &&
      (c.offset < c.keys->shape(2) || c.keys->shape(2) >= c.max_size)) {
    return;
  }
  auto grown = [&](const std::optional<mx::array>& held,
                   const mx::array& rows) {
    mx::Shape shape = rows.shape();
    shape[2] = std::min(kCacheStepTokens, c.max_size - c.offset);
    auto fresh = mx::zeros(shape, rows.dtype());
    return held ? mx::concatenate({*held, fresh}, 2) : fresh;
  };
  c.keys = grown(c.keys, keys);
  c.values = grown(c.values, values);
  c.index = c.offset;
}

void RotatingKVCache::append_one(const mx::array& key, const mx::array& value) {
  auto& c = content_;
  grow(key, value);
  int surplus = c.keys->shape(2) - c.max_size;
  if (surplus > 0) {
    c.keys = without_oldest(*c.keys, surplus);
    c.values = without_oldest(*c.values, surplus);
    c.index = c.max_size;
  }
  if (c.index == c.max_size) {
    c.index = c.keep;
  }
  c.keys = with_rows(*c.keys, key, c.index);
  c.values = with_rows(*c.values, value, c.index);
  c.offset += 1;
  c.index += 1;
}

std::pair<mx::array, mx::array> RotatingKVCache::update(
    const mx::array& keys, const mx::array& values) {
  if (content_.keys) {
    check_same_rows(*content_.keys, keys);
    check_same_rows(*content_.values, values);
  }
  if (keys.shape(2) == 1) {
    append_one(keys, values);
    return keys_and_values();
  }
  append_several(keys, values);
  return {*content_.keys, *content_.values};
}

std::pair<mx::array, mx::array> RotatingKVCache::keys_and_values() const {
  int used = std::min(content_.offset, content_.keys->shape(2));
  return {rows_of(*content_.keys, 0, used), rows_of(*content_.values, 0, used)};
}

int RotatingKVCache::trim(int num_tokens) {
  if (!is_trimmable()) {
    return 0;
  }
  int trimmed = std::clamp(num_tokens, 0, content_.offset);
  content_.offset -= trimmed;
  content_.index -= trimmed;
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> RotatingKVCache::checkpoint() const {
  return make_checkpoint(content_);
}

void RotatingKVCache::rollback(const CacheCheckpoint& checkpoint) {
  content_ = content_of<Content>(checkpoint, kind());
}

std::shared_ptr<Cache> RotatingKVCache::to_quantized(int, int) const {
  throw Error(ErrorKind::unsupported,
              "a rotating KV cache can't be quantized (RotatingKVCache "
              "Quantization NYI in the reference); turn kv-bits off, or use a "
              "model without sliding windows and no max-kv-size");
}

CacheState RotatingKVCache::state() const {
  const auto& c = content_;
  return state_list(c.keys, c.values, c.offset, c.keep, c.max_size, c.index);
}

void RotatingKVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  reader.expect_size(6);
  auto held = reader.keys_and_values();
  Content content;
  content.keys = held.keys;
  content.values = held.values;
  content.max_size = reader.integer(4, 1, INT_MAX);
  content.keep = reader.integer(3, 0, content.max_size - 1);
  content.offset = reader.integer(2, 0, held.keys ? INT_MAX / 2 : 0);
  content.index = reader.integer(5, 0, held.tokens);
  // Nothing overwritten yet: the next place is the number of tokens. Later
  // all rows, max_size or more, are in use and the place lies behind the kept
  // ones.
  bool in_order = content.index == content.offset;
  bool full = content.offset >= held.tokens &&
              held.tokens >= content.max_size &&
              (content.index == held.tokens || content.index >= content.keep);
  if (!in_order && !full) {
    reader.fail("its index " + std::to_string(content.index) +
                " doesn't fit its " + std::to_string(content.offset) +
                " tokens");
  }
  content_ = std::move(content);
}

void RotatingKVCache::append_arrays_to(std::vector<mx::array>& out) const {
  if (content_.keys) {
    out.push_back(*content_.keys);
    out.push_back(*content_.values);
  }
}

CachePtr make_rotating_cache(int max_size, int keep) {
  return std::make_shared<RotatingKVCache>(max_size, keep);
}

}  // namespace mlxlm
