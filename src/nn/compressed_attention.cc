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

// In the state's ArraysCache.
enum Held { kRows, kIndexKeys, kOpenRows, kOpenGates, kNumHeld };

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

void CompressedAttention::compress(const mx::array& x,
                                   int offset,
                                   Cache& state,
                                   CompressedShare& share) const {
  auto& held = dynamic_cast<ArraysCache&>(state);
  const auto& c = *p_.compressor;
  const int size = p_.sizes.group_tokens;
  auto rows = project(x, c.kv);
  int first = offset;
  if (c.gate) {
    rows = appended(held[kOpenRows], rows);
    auto gates = appended(held[kOpenGates], project(x, *c.gate));
    const int count = rows.shape(1);
    const int full = count - count % size;
    first = (offset + x.shape(1) - count) / size;
    held.set(kOpenRows, along_tokens(rows, full, count));
    held.set(kOpenGates, along_tokens(gates, full, count));
    auto grouped = [&](const mx::array& a) {
      return mx::unflatten(along_tokens(a, 0, full), 1, {full / size, size});
    };
    auto weights =
        mx::softmax(grouped(gates), std::vector<int>{2}, /*precise=*/true);
    rows = mx::sum(mx::multiply(grouped(rows), weights), 2);
  }
  if (rows.shape(1) > 0) {
    rows = kernels::table().norm(rows, c.norm);
    auto rope = p_.rope->at(rows.shape(1), first);
    rope.scale = static_cast<float>(size);
    auto placed = [&](const mx::array& a) {
      return mx::squeeze(turned(mx::expand_dims(a, 2), rope, first), 1);
    };
    auto kept = rounded_to_fp4(placed(rows), 16, Fp4Scale::e4m3);
    held.set(kRows, appended(held[kRows], kept));
    if (p_.index && p_.index->k) {
      auto keys =
          kernels::table().norm(project(rows, *p_.index->k), *p_.index->k_norm);
      keys = rounded_to_fp4(placed(keys), 32, Fp4Scale::power_of_two);
      held.set(kIndexKeys, appended(held[kIndexKeys], keys));
    }
  }
  share.rows = held[kRows];
  if (p_.index) share.index_keys = held[kIndexKeys];
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
  q = rounded_to_fp4(q, 32, Fp4Scale::power_of_two);
  auto keys = mx::expand_dims(mx::swapaxes(*share.index_keys, 1, 2), 1);
  auto scores = mx::maximum(mx::matmul(q, keys), mx::array(0.0f, q.dtype()));
  const float scale = 1 / std::sqrt(float(index.num_heads) * q.shape(3));
  auto weights =
      mx::multiply(project(x, index.weight), mx::array(scale, x.dtype()));
  weights = mx::expand_dims(mx::swapaxes(weights, 1, 2), -1);
  scores = mx::sum(mx::multiply(scores, weights), 1);  // [B, L, K]
  const int size = p_.sizes.group_tokens;
  auto num_visible = mx::floor_divide(
      mx::expand_dims(mx::arange(offset + 1, offset + 1 + tokens), 1),
      mx::array(size));
  auto visible = mx::broadcast_to(
      mx::expand_dims(mx::less(mx::arange(num_keys), num_visible), 0),
      scores.shape());
  const mx::array lowest(-kInfinity, scores.dtype());
  scores = mx::where(visible, scores, lowest);
  if (index.num_blocks > 0) {
    share.candidates = best_blocks(scores, num_visible, index);
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
  auto kv = mx::expand_dims(table.norm(project(x, p_.kv), p_.kv_norm), 2);
  kv = rounded_to_fp8(turned(kv, rope, offset));
  if (p_.compressor) compress(x, offset, *cache_part(cache, 1, 2), share);
  if (p_.index) choose(x, q_input, offset, share);
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
                          make_arrays_cache(kNumHeld)});
}

std::vector<kernels::Linear*> CompressedAttention::linears() {
  std::vector<kernels::Linear*> all{&p_.q_down, &p_.q, &p_.kv, &p_.out};
  if (auto& c = p_.compressor) {
    all.push_back(&c->kv);
    if (c->gate) all.push_back(&*c->gate);
  }
  if (auto& index = p_.index) {
    all.push_back(&index->q);
    all.push_back(&index->weight);
    if (index->k) all.push_back(&*index->k);
  }
  return all;
}

}  // namespace mlxlm::nn
