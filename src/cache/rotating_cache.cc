#include "cache/rotating_cache.h"

#include <algorithm>
#include <climits>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {

RotatingKVCache::RotatingKVCache(
    int max_size, int keep, const std::optional<KvQuantization>& quantization) {
  if (keep < 0 || max_size <= keep) {
    throw Error(ErrorKind::argument,
                "a rotating cache of " + std::to_string(max_size) +
                    " tokens can't keep the first " + std::to_string(keep) +
                    ": the size must be larger");
  }
  content_.rows = empty_rows(quantization);
  content_.max_size = max_size;
  content_.keep = keep;
}

int RotatingKVCache::size() const {
  return std::min(content_.offset, content_.max_size);
}

CacheCapabilities RotatingKVCache::capabilities() const {
  auto quantization = quantization_of(content_.rows);
  return {.attends = true,
          .trimmable_tokens = is_trimmable() ? content_.offset : 0,
          .quantizable = !quantization,
          .quantization = quantization,
          .checkpoint_bytes = nbytes()};
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
KeysAndValues RotatingKVCache::in_order() const {
  const auto& c = content_;
  int num_rows = c.rows.count();
  if (c.index == num_rows) {
    return c.rows;
  }
  if (c.index < c.offset) {
    return c.rows.slice(0, c.keep)
        .followed_by(c.rows.slice(c.index, num_rows))
        .followed_by(c.rows.slice(c.keep, c.index));
  }
  return c.rows.slice(0, c.index);
}

// Without the `num_rows` rows that follow the first `keep`.
KeysAndValues RotatingKVCache::without_oldest(const KeysAndValues& held,
                                              int num_rows) const {
  if (num_rows <= 0) {
    return held;
  }
  int keep = std::min(content_.keep, held.count());
  int from = std::min(keep + num_rows, held.count());
  return held.slice(0, keep).followed_by(held.slice(from, held.count()));
}

void RotatingKVCache::append_several(const KeysAndValues& rows) {
  auto& c = content_;
  int num_tokens = rows.count();
  if (c.rows.empty()) {
    c.rows = rows;
  } else {
    KeysAndValues held = in_order();
    // max_size - 1 rows stay, so that the first new token, too, sees max_size.
    int surplus = held.count() - c.max_size + 1;
    c.rows = without_oldest(held, surplus).followed_by(rows);
  }
  c.offset += num_tokens;
  c.index = c.rows.count();
}

// Makes room for one more row, while fewer than max_size are there.
void RotatingKVCache::grow(const KeysAndValues& rows) {
  auto& c = content_;
  if (!c.rows.empty() &&
      (c.offset < c.rows.count() || c.rows.count() >= c.max_size)) {
    return;
  }
  auto fresh = rows.zeros(std::min(kCacheStepTokens, c.max_size - c.offset));
  c.rows = c.rows.empty() ? fresh : c.rows.followed_by(fresh);
  c.index = c.offset;
}

// Sets index to where one more row goes.
void RotatingKVCache::make_place(const KeysAndValues& row) {
  auto& c = content_;
  grow(row);
  int surplus = c.rows.count() - c.max_size;
  if (surplus > 0) {
    c.rows = without_oldest(c.rows, surplus);
    c.index = c.max_size;
  }
  if (c.index == c.max_size) {
    c.index = c.keep;
  }
}

void RotatingKVCache::append_one(const KeysAndValues& row) {
  auto& c = content_;
  make_place(row);
  c.rows.set(row, c.index);
  c.offset += 1;
  c.index += 1;
}

mx::array RotatingKVCache::attend(const mx::array& q,
                                  const mx::array& k,
                                  const mx::array& v,
                                  const AttendSpec& spec) {
  auto& c = content_;
  if (quantized() || k.shape(2) > 1 || !c.rows.sole()) {
    return AttentionCache::attend(q, k, v, spec);
  }
  KeysAndValues row = c.rows.encoded(k, v);
  c.rows.check_fit(row);
  Mask mask =
      spec.causal ? make_mask(q.shape(2), spec.window_tokens) : Mask::none();
  make_place(row);
  const int at = c.index;
  c.offset += 1;
  c.index += 1;
  const int num_keys = std::min(c.offset, c.rows.count());
  return attend_in_place(q, k, v, c.rows, at, num_keys, spec, mask);
}

KeysAndValues RotatingKVCache::update(const mx::array& keys,
                                      const mx::array& values) {
  KeysAndValues rows = content_.rows.encoded(keys, values);
  content_.rows.check_fit(rows);
  if (rows.count() == 1) {
    append_one(rows);
    return keys_and_values();
  }
  append_several(rows);
  return content_.rows;
}

KeysAndValues RotatingKVCache::keys_and_values() const {
  return content_.rows.slice(0,
                             std::min(content_.offset, content_.rows.count()));
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

CachePtr RotatingKVCache::to_quantized(
    const KvQuantization& quantization) const {
  if (quantized()) {
    return nullptr;
  }
  auto copy = std::make_shared<RotatingKVCache>(*this);
  copy->content_.rows = quantized_copy(content_.rows, quantization);
  return copy;
}

CacheState RotatingKVCache::state() const {
  const auto& c = content_;
  c.rows.share();
  return state_with(c.rows, {c.offset, c.keep, c.max_size, c.index});
}

void RotatingKVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  Content content;
  content.rows = reader.keys_and_values(4, quantized());
  int held_tokens = content.rows.count();
  content.max_size = reader.integer(4, 1, INT_MAX);
  content.keep = reader.integer(3, 0, content.max_size - 1);
  content.offset = reader.integer(2, 0, content.rows.empty() ? 0 : INT_MAX / 2);
  content.index = reader.integer(5, 0, held_tokens);
  // Nothing overwritten yet: the next place is the number of tokens. Later
  // all rows, max_size or more, are in use and the place lies behind the kept
  // ones.
  bool in_order = content.index == content.offset;
  bool full = content.offset >= held_tokens &&
              held_tokens >= content.max_size &&
              (content.index == held_tokens || content.index >= content.keep);
  if (!in_order && !full) {
    reader.fail("its index " + std::to_string(content.index) +
                " doesn't fit its " + std::to_string(content.offset) +
                " tokens");
  }
  content_ = std::move(content);
}

CachePtr make_rotating_cache(
    int max_size, int keep, const std::optional<KvQuantization>& quantization) {
  return std::make_shared<RotatingKVCache>(max_size, keep, quantization);
}

}  // namespace mlxlm
