#include "cache/rotating_cache.h"

#include <algorithm>
#include <climits>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/cache_list.h"
#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {
namespace {

// From the end on, where the small parts are.
KeysAndValues joined(const std::vector<KeysAndValues>& parts) {
  KeysAndValues all = parts.back();
  for (std::size_t i = parts.size() - 1; i > 0; --i) {
    all = parts[i - 1].followed_by(all);
  }
  return all;
}

}  // namespace

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
  const int next = c.index >= c.max_size ? 0 : c.index;
  return mask_from(c.offset, next, num_queries, window_tokens, want_array);
}

// Of queries that come after `offset` tokens; a single one is held at `place`.
Mask RotatingKVCache::mask_from(int offset,
                                int place,
                                int num_queries,
                                int window_tokens,
                                bool want_array) const {
  const int max_size = content_.max_size;
  if (num_queries > 1) {
    if (stepwise_ && content_.keep > 0 && offset + num_queries > max_size) {
      return stepwise_mask(offset, num_queries, window_tokens);
    }
    int window = window_tokens > 0 ? window_tokens : max_size;
    int num_earlier = std::min(max_size - 1, offset);
    if (num_earlier + num_queries > window || want_array) {
      return Mask::of(kernels::causal_mask(
          num_queries, num_earlier + num_queries, num_earlier, window));
    }
    return Mask::causally();
  }
  // One token sees all that is held, unless its window is smaller than that.
  if (window_tokens <= 0 || offset < window_tokens ||
      max_size <= window_tokens) {
    return Mask::none();
  }
  int num_keys = std::min(offset + 1, max_size);
  auto newest = mx::greater_equal(mx::arange(num_keys),
                                  mx::array(num_keys - window_tokens));
  return Mask::of(mx::roll(newest, place + 1));
}

// As the tokens would see one by one: the first `keep` and the newest, where a
// window would move on from the first.
Mask RotatingKVCache::stepwise_mask(int offset,
                                    int num_queries,
                                    int window_tokens) const {
  const auto& c = content_;
  // append_several() leaves this many rows before the new ones; those behind
  // the kept ones are the newest.
  int held = std::min(c.max_size - 1, offset);
  auto rows = mx::expand_dims(mx::arange(held + num_queries), 0);
  auto kept = mx::less(rows, mx::array(c.keep));
  // Of each query: its own row, and the number of newest rows it sees.
  auto own = mx::expand_dims(mx::arange(held, held + num_queries), 1);
  auto age = mx::subtract(own, rows);
  auto newest = mx::logical_and(mx::greater_equal(age, mx::array(0)),
                                mx::less(age, mx::array(c.max_size - c.keep)));
  auto seen = mx::logical_or(kept, newest);
  if (window_tokens > 0) {
    seen = mx::logical_and(seen, mx::less(age, mx::array(window_tokens)));
  }
  return Mask::of(seen);
}

// Rows in use, whatever their order.
int RotatingKVCache::num_rows() const {
  const auto& c = content_;
  const bool turned = c.index < c.offset;
  return turned ? c.rows.count() : std::min(c.index, c.rows.count());
}

// The rows from oldest to newest, but for the `num_dropped` that follow the
// first `keep`, and `more` behind them.
KeysAndValues RotatingKVCache::in_order(int num_dropped,
                                        const KeysAndValues& more) const {
  const auto& c = content_;
  const int count = c.rows.count();
  if (c.index == count && num_dropped <= 0 && more.empty()) {
    return c.rows;
  }
  std::vector<KeysAndValues> parts;
  auto add = [&](int from, int to) {
    if (from < to) parts.push_back(c.rows.slice(from, to));
  };
  auto add_but_dropped = [&](int from, int to) {
    const int dropped = std::clamp(num_dropped, 0, to - from);
    num_dropped -= dropped;
    add(from + dropped, to);
  };
  const int keep = std::min(c.keep, num_rows());
  if (c.index < count && c.index < c.offset) {
    add(0, keep);
    add_but_dropped(c.index, count);
    add_but_dropped(keep, c.index);
  } else if (num_dropped <= 0) {
    add(0, num_rows());
  } else {
    add(0, keep);
    add_but_dropped(keep, num_rows());
  }
  if (!more.empty()) {
    parts.push_back(more);
  }
  return joined(parts);
}

void RotatingKVCache::append_several(const KeysAndValues& rows) {
  auto& c = content_;
  if (c.rows.empty()) {
    c.rows = rows;
  } else {
    // max_size - 1 rows stay, so that the first new token, too, sees max_size.
    c.rows = in_order(num_rows() - c.max_size + 1, rows);
  }
  c.offset += rows.count();
  c.index = c.rows.count();
}

// Makes room for one more row, while fewer than max_size are there.
void RotatingKVCache::grow(const KeysAndValues& rows) {
  auto& c = content_;
  if (!c.rows.empty() &&
      (c.offset < c.rows.count() || c.rows.count() >= c.max_size)) {
    return;
  }
  auto fresh = (c.rows.empty() ? rows : c.rows)
                   .zeros(std::min(kCacheStepTokens, c.max_size - c.offset));
  c.rows = c.rows.empty() ? fresh : c.rows.followed_by(fresh);
  c.index = c.offset;
}

// Sets index to where one more row goes.
void RotatingKVCache::make_place(const KeysAndValues& row) {
  auto& c = content_;
  grow(row);
  int surplus = c.rows.count() - c.max_size;
  if (surplus > 0) {
    c.rows = in_order(surplus, {});
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

std::optional<RoomInPlace> RotatingKVCache::room_in_place(
    const mx::array& k,
    const mx::array& v,
    int num_tokens,
    const AttendSpec& spec) {
  auto& c = content_;
  const bool fits = stepwise_ && c.index == c.offset && !c.rows.empty() &&
                    c.offset + num_tokens <= c.max_size;
  if (quantized() || (num_tokens > 1 && !fits) || !c.rows.sole() ||
      !reads_rows_as_they_are(spec)) {
    return std::nullopt;
  }
  KeysAndValues rows = c.rows.shaped_as(k, v);
  c.rows.check_fit(rows);
  Mask mask =
      spec.causal ? make_mask(num_tokens, spec.window_tokens) : Mask::none();
  if (num_tokens == 1) {
    make_place(rows);
  } else if (c.rows.count() < c.offset + num_tokens) {
    const int more = std::max(num_tokens, kCacheStepTokens);
    c.rows = c.rows.followed_by(
        c.rows.zeros(std::min(more, c.max_size - c.rows.count())));
  }
  const int at = c.index;
  c.offset += num_tokens;
  c.index += num_tokens;
  const int num_keys = std::min(c.offset, c.rows.count());
  return RoomInPlace{&c.rows, at, num_keys, std::move(mask)};
}

int RotatingKVCache::num_keys_after(int num_tokens) const {
  const auto& c = content_;
  return num_tokens == 1 ? std::min(c.offset + 1, c.max_size)
                         : std::min(c.offset, c.max_size - 1) + num_tokens;
}

mx::array RotatingKVCache::attend_again(const mx::array& q,
                                        const AttendSpec& spec) {
  const auto& c = content_;
  const int num_queries = q.shape(2);
  return attend_to(keys_and_values(),
                   q,
                   spec,
                   mask_from(c.offset - num_queries,
                             c.index - 1,
                             num_queries,
                             spec.window_tokens));
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
  // Nothing overwritten yet: the next place is the number of tokens, and room
  // behind it is never made past max_size. Later all rows, max_size or more,
  // are in use and the place lies behind the kept ones.
  bool in_order =
      content.index == content.offset &&
      (content.index == held_tokens || held_tokens <= content.max_size);
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

void see_stepwise(Cache& cache, bool on) {
  if (auto* rotating = dynamic_cast<RotatingKVCache*>(&cache)) {
    rotating->see_stepwise(on);
  } else if (auto* list = dynamic_cast<CacheList*>(&cache)) {
    for (std::size_t i = 0; i < list->count(); ++i) {
      see_stepwise(*(*list)[i], on);
    }
  }
}

CachePtr make_rotating_cache(
    int max_size, int keep, const std::optional<KvQuantization>& quantization) {
  return std::make_shared<RotatingKVCache>(max_size, keep, quantization);
}

}  // namespace mlxlm
