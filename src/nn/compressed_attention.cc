#include "nn/compressed_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/batch_cache.h"
#include "cache/rotating_cache.h"
#include "nn/float_rounding.h"
#include "nn/linear.h"

namespace mlxlm::nn {
namespace {

// What a compressor holds in the state's ArraysCache, one after the other: its
// rows, the projections of the group that isn't full yet, and the half of the
// last full group's that the next one reads.
enum Held { kRows, kOpen, kOpenGates, kLast, kLastGates, kNumHeld };
constexpr int kOfIndex = kNumHeld;  // the index's keys or its compressor's

constexpr float kInfinity = std::numeric_limits<float>::infinity();

mx::array along_tokens(const mx::array& x, int begin, int end) {
  auto start = mx::Shape(x.ndim(), 0);
  auto stop = x.shape();
  start[1] = begin;
  stop[1] = end;
  return mx::slice(x, start, stop);
}

// [B, T, D] and [B, L, D] -> [B, T + L, D]
mx::array appended(const std::optional<mx::array>& held,
                   const mx::array& more) {
  return held ? mx::concatenate({*held, more}, 1) : more;
}

// [B, G, size, 2D] -> [B, G, 2 * size, D]: the first half of the numbers of the
// group before (of the first one: `last`), then the second half of its own.
mx::array overlapping(const mx::array& groups, const mx::array& last) {
  auto halves = mx::split(groups, 2, -1);
  const int count = groups.shape(1);
  auto before =
      mx::concatenate({last, along_tokens(halves[0], 0, count - 1)}, 1);
  return mx::concatenate({before, halves[1]}, 2);
}

struct CompressedRows {
  mx::array rows;  // [B, K, D] of the groups that are full now
  int first = 0;   // the number of the first of them
};

// x [B, L, width], its first token at `offset`. `slot`: where the state begins.
CompressedRows compressed(const Compressor& c,
                          const mx::array& x,
                          int size,
                          int offset,
                          ArraysCache& held,
                          int slot) {
  auto kv = apply(x, c.kv);
  if (!c.gate) return {kernels::table().norm(kv, c.norm), offset};
  kv = appended(held[slot + kOpen], kv);
  auto gates = appended(held[slot + kOpenGates], apply(x, *c.gate));
  const int count = kv.shape(1);
  const int full = count - count % size;
  const int first = (offset + x.shape(1) - count) / size;
  held.set(slot + kOpen, along_tokens(kv, full, count));
  held.set(slot + kOpenGates, along_tokens(gates, full, count));
  const int width = c.overlaps ? kv.shape(2) / 2 : kv.shape(2);
  if (full == 0) return {mx::zeros({x.shape(0), 0, width}, kv.dtype()), first};
  auto grouped = [&](const mx::array& a) {
    return mx::unflatten(along_tokens(a, 0, full), 1, {full / size, size});
  };
  kv = grouped(kv);
  gates = grouped(gates);
  if (c.places) gates = mx::add(gates, *c.places);
  if (c.overlaps) {
    const mx::Shape one{x.shape(0), 1, size, width};
    auto last = [&](const mx::array& groups, Held which, float none) {
      auto before =
          held[slot + which].value_or(mx::full(one, none, groups.dtype()));
      auto half = mx::split(groups, 2, -1)[0];
      held.set(slot + which, along_tokens(half, full / size - 1, full / size));
      return overlapping(groups, before);
    };
    kv = last(kv, kLast, 0);
    gates = last(gates, kLastGates, -kInfinity);
  }
  auto weights = mx::softmax(gates, std::vector<int>{2}, /*precise=*/true);
  auto rows = mx::sum(mx::multiply(kv, weights), 2);
  return {kernels::table().norm(rows, c.norm), first};
}

// Which are among the `count` largest along the last axis.
mx::array are_largest(const mx::array& x, int count) {
  auto order = mx::argpartition(mx::negative(x), count - 1, -1);
  auto stop = order.shape();
  stop.back() = count;
  return mx::put_along_axis(mx::zeros(x.shape(), mx::bool_),
                            mx::slice(order, mx::Shape(x.ndim(), 0), stop),
                            mx::array(true),
                            -1);
}

// Of the visible rows those in the best blocks; the newest block, which isn't
// full, is always one of them. scores [B, L, K], num_visible [L, 1].
mx::array best_blocks(const mx::array& scores,
                      const mx::array& num_visible,
                      const RowIndex& index) {
  const int num_keys = scores.shape(2);
  const int size = index.block_rows;
  const int count = (num_keys + size - 1) / size;
  auto padded = mx::pad(scores,
                        {{0, 0}, {0, 0}, {0, count * size - num_keys}},
                        mx::array(-kInfinity));
  auto best = mx::max(mx::unflatten(padded, -1, {count, size}), -1);
  auto newest = mx::floor_divide(mx::subtract(num_visible, mx::array(1)),
                                 mx::array(size));
  best = mx::where(
      mx::equal(mx::arange(count), newest), mx::array(kInfinity), best);
  auto chosen =
      mx::logical_and(are_largest(best, std::min(index.num_blocks, count)),
                      mx::greater(best, mx::array(-kInfinity)));
  auto rows = mx::repeat(chosen, size, -1);
  return mx::slice(rows, {0, 0, 0}, scores.shape());
}

}  // namespace

mx::array CompressedAttention::turned(const mx::array& x,
                                      kernels::Rope rope,
                                      int offset) const {
  const int fixed = x.shape(3) - p_.sizes.rotated;
  auto parts = mx::split(x, mx::Shape{fixed}, -1);
  auto end = kernels::table().norm_rope(
      mx::flatten(parts[1], 2, 3), x.shape(2), nullptr, &rope, offset);
  if (fixed == 0) return end;
  return mx::concatenate({mx::swapaxes(parts[0], 1, 2), end}, -1);
}

mx::array CompressedAttention::placed(const mx::array& rows, int first) const {
  auto rope = p_.rope->at(rows.shape(1), first);
  rope.scale = static_cast<float>(p_.sizes.group_tokens);
  return mx::squeeze(turned(mx::expand_dims(rows, 2), rope, first), 1);
}

void CompressedAttention::compress(const mx::array& x,
                                   int offset,
                                   Cache& state,
                                   CompressedShare& share) const {
  auto& held = dynamic_cast<ArraysCache&>(state);
  const int size = p_.sizes.group_tokens;
  auto hold = [&](int slot, const mx::array& rows) {
    held.set(slot, appended(held[slot], rows));
  };
  const auto made = compressed(*p_.compressor, x, size, offset, held, 0);
  if (made.rows.shape(1) > 0) {
    auto rows = placed(made.rows, made.first);
    if (p_.sizes.rounds) rows = rounded_to_fp4(rows, 16, Fp4Scale::e4m3);
    hold(kRows, rows);
  }
  std::optional<CompressedRows> keys;
  if (p_.index && p_.index->k) {
    keys = {kernels::table().norm(apply(made.rows, *p_.index->k),
                                  *p_.index->k_norm),
            made.first};
  } else if (p_.index && p_.index->compressor) {
    keys = compressed(*p_.index->compressor, x, size, offset, held, kOfIndex);
  }
  if (keys && keys->rows.shape(1) > 0) {
    auto rows = placed(keys->rows, keys->first);
    if (p_.sizes.rounds) {
      rows = rounded_to_fp4(rows, 32, Fp4Scale::power_of_two);
    }
    hold(kOfIndex, rows);
  }
  share.rows = held[kRows];
  if (p_.index) share.index_keys = held[kOfIndex];
}

// [L, 1]
mx::array CompressedAttention::num_visible(int offset, int tokens) const {
  return mx::floor_divide(
      mx::expand_dims(mx::arange(offset + 1, offset + 1 + tokens), 1),
      mx::array(p_.sizes.group_tokens));
}

void CompressedAttention::choose(const mx::array& x,
                                 const mx::array& q_input,
                                 int offset,
                                 CompressedShare& share) const {
  share.chosen.reset();
  if (!share.index_keys) return;
  const auto& index = *p_.index;
  const int tokens = x.shape(1);
  const int num_keys = share.index_keys->shape(1);
  auto q = mx::unflatten(project(q_input, index.q), -1, {index.num_heads, -1});
  q = turned(q, p_.rope->at(tokens, offset), offset);
  if (p_.sizes.rounds) {
    q = rounded_to_fp4(q, 32, Fp4Scale::power_of_two);
  }
  auto keys = mx::expand_dims(mx::swapaxes(*share.index_keys, 1, 2), 1);
  auto scores = mx::maximum(mx::matmul(q, keys), mx::array(0.0f, q.dtype()));
  const float scale = 1 / std::sqrt(float(index.num_heads) * q.shape(3));
  auto weights =
      mx::multiply(project(x, index.weight), mx::array(scale, x.dtype()));
  weights = mx::expand_dims(mx::swapaxes(weights, 1, 2), -1);
  scores = mx::sum(mx::multiply(scores, weights), 1);  // [B, L, K]
  const auto in_reach = num_visible(offset, tokens);
  auto visible = mx::broadcast_to(
      mx::expand_dims(mx::less(mx::arange(num_keys), in_reach), 0),
      scores.shape());
  const mx::array lowest(-kInfinity, scores.dtype());
  scores = mx::where(visible, scores, lowest);
  if (index.num_blocks > 0) {
    share.candidates = best_blocks(scores, in_reach, index);
  } else if (share.candidates) {
    visible = mx::logical_and(visible, *share.candidates);
    scores = mx::where(*share.candidates, scores, lowest);
  }
  share.chosen = mx::logical_and(
      are_largest(scores, std::min(index.num_rows, num_keys)), visible);
}

// q [B, H, L, D], kv [B, 1, L, D] -> [B, H, L, D]
mx::array CompressedAttention::attend(const mx::array& q,
                                      const mx::array& kv,
                                      Cache& window,
                                      const CompressedShare& share) const {
  auto& newest = dynamic_cast<AttentionCache&>(window);
  const int tokens = q.shape(2);
  auto mask =
      newest.make_mask(tokens, p_.sizes.window_tokens, /*want_array=*/true);
  auto keys = newest.update(kv, kv).keys.restored();
  auto in_full = [&](const mx::array& a, int count) {
    return mx::broadcast_to(a, {q.shape(0), 1, tokens, count});
  };
  auto visible = in_full(mask.array.value_or(mx::array(true)), keys.shape(2));
  if (p_.sizes.group_tokens > 0 && share.rows && share.chosen) {
    auto chosen = mx::expand_dims(*share.chosen, 1);
    visible = mx::concatenate({visible, in_full(chosen, chosen.shape(3))}, -1);
    keys = mx::concatenate({keys, mx::expand_dims(*share.rows, 1)}, 2);
  }
  const float scale = 1 / std::sqrt(static_cast<float>(q.shape(3)));
  return kernels::table().attention(
      q, keys, keys, {.scale = scale, .mask = visible, .sinks = p_.sinks});
}

mx::array CompressedAttention::of_row(const mx::array& x,
                                      Cache* cache,
                                      CompressedShare& share) const {
  const auto own = cache != nullptr ? nullptr : make_cache();
  if (own) cache = own.get();
  const auto window = cache_part(cache, 0, 2);
  const int offset = window->offset();
  const auto& table = kernels::table();
  auto q_input = table.norm(project(x, p_.q_down), p_.q_norm);
  const auto rope = p_.rope->at(x.shape(1), offset);
  auto q = mx::unflatten(
      project(q_input, p_.q), -1, {p_.sizes.num_heads, p_.sizes.head_size});
  if (p_.q_head_norm) q = table.norm(q, *p_.q_head_norm);
  auto kv = mx::expand_dims(table.norm(project(x, p_.kv), p_.kv_norm), 2);
  kv = turned(kv, rope, offset);
  if (p_.sizes.rounds) kv = rounded_to_fp8(kv);
  if (p_.compressor) compress(x, offset, *cache_part(cache, 1, 2), share);
  if (p_.index) choose(x, q_input, offset, share);
  if (p_.sizes.sees_all_rows && share.rows) {
    share.chosen = mx::expand_dims(mx::less(mx::arange(share.rows->shape(1)),
                                            num_visible(offset, x.shape(1))),
                                   0);
  }
  auto answers = attend(turned(q, rope, offset), kv, *window, share);
  answers = turned(mx::swapaxes(answers, 1, 2),
                   p_.back.at(x.shape(1), offset),
                   offset);  // [B, H, L, D]
  answers = mx::swapaxes(
      mx::unflatten(answers, 1, {p_.sizes.num_output_groups, -1}), 2, 3);
  auto grouped = stack_product(
      mx::flatten(answers, 3, 4), p_.out_groups, /*transposed=*/true);
  return mx::flatten(mx::swapaxes(grouped, 1, 2), 2, 3);
}

mx::array CompressedAttention::operator()(const MixerInput& input,
                                          const Residual& residual) const {
  auto x = input.norm ? kernels::table().norm(input.x, *input.norm) : input.x;
  auto& shares = *input.compressed;
  shares.resize(std::max<std::size_t>(input.runs.size(), 1));
  auto share = shares.begin();
  auto y = each_row(x, input.cache, [&](const mx::array& row, Cache* cache) {
    return of_row(row, cache, *share++);
  });
  return finish(y, p_.out, residual);
}

CachePtr CompressedAttention::make_cache() const {
  return make_cache_list({make_rotating_cache(p_.sizes.window_tokens),
                          make_arrays_cache(2 * kNumHeld)});
}

std::vector<kernels::Linear*> CompressedAttention::linears() {
  std::vector<kernels::Linear*> all{&p_.q_down, &p_.q, &p_.kv, &p_.out};
  auto add = [&](std::optional<Compressor>& c) {
    if (!c) return;
    all.push_back(&c->kv);
    if (c->gate) all.push_back(&*c->gate);
  };
  add(p_.compressor);
  if (auto& index = p_.index) {
    add(index->compressor);
    all.push_back(&index->q);
    all.push_back(&index->weight);
    if (index->k) all.push_back(&*index->k);
  }
  return all;
}

}  // namespace mlxlm::nn
