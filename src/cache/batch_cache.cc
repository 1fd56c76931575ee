#include "cache/batch_cache.h"

#include <numeric>
#include <utility>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {

BatchCache::BatchCache(std::vector<CachePtr> rows, std::vector<int> num_tokens)
    : CacheList(std::move(rows)), num_tokens_(std::move(num_tokens)) {
  if (num_tokens_.size() != count()) {
    throw Error(ErrorKind::internal,
                "a batch of " + std::to_string(count()) +
                    " rows has the tokens of " +
                    std::to_string(num_tokens_.size()));
  }
}

CachePtr BatchCache::fork() const {
  std::vector<CachePtr> rows;
  for (std::size_t i = 0; i < count(); ++i) rows.push_back((*this)[i]->fork());
  return std::make_shared<BatchCache>(std::move(rows), num_tokens_);
}

// All rows that are written in place, in one operation, if all of them are and
// there is such an operation.
std::optional<mx::array> BatchCache::attend_together(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const AttendSpec& spec,
    const std::vector<std::optional<RoomInPlace>>& places) {
  const auto append_rows = kernels::table().append_rows;
  if (append_rows == nullptr) return std::nullopt;
  std::vector<kernels::BatchRow> rows;
  for (std::size_t i = 0; i < count(); ++i) {
    if (!places[i] || places[i]->mask.array) return std::nullopt;
    const auto& [held, at, num_keys, mask] = *places[i];
    rows.push_back({held->keys.buffer(),
                    held->values.buffer(),
                    held->keys.written(),
                    num_tokens_[i],
                    at,
                    num_keys});
  }
  const Mask mask = spec.causal ? Mask::causally() : Mask::none();
  auto made = append_rows(q, k, v, rows, attention_parameters(spec, mask));
  if (!made) return std::nullopt;
  for (const auto& place : places) {
    place->rows->keys.written_by(made->written);
    place->rows->values.written_by(made->written);
  }
  return made->out;
}

mx::array BatchCache::attend(const mx::array& q,
                             const mx::array& k,
                             const mx::array& v,
                             const AttendSpec& spec) {
  std::vector<std::optional<RoomInPlace>> places;
  for (std::size_t i = 0; i < count(); ++i) {
    auto* row = dynamic_cast<AttentionCache*>((*this)[i].get());
    places.push_back(row == nullptr
                         ? std::nullopt
                         : row->room_in_place(k, v, num_tokens_[i], spec));
  }
  if (auto together = attend_together(q, k, v, spec, places)) return *together;
  auto queries = split_tokens(q, num_tokens_, 2);
  const auto keys = split_tokens(k, num_tokens_, 2);
  const auto values = split_tokens(v, num_tokens_, 2);
  for (std::size_t i = 0; i < count(); ++i) {
    queries[i] = places[i]
                     ? AttentionCache::attend_in_place(
                           queries[i], keys[i], values[i], *places[i], spec)
                     : (*this)[i]->attend(queries[i], keys[i], values[i], spec);
  }
  return join_tokens(std::move(queries), 2);
}

mx::array BatchCache::attend_again(const mx::array& q, const AttendSpec& spec) {
  auto queries = split_tokens(q, num_tokens_, 2);
  for (std::size_t i = 0; i < count(); ++i) {
    queries[i] = (*this)[i]->attend_again(queries[i], spec);
  }
  return join_tokens(std::move(queries), 2);
}

std::vector<kernels::TokenRun> token_runs(const Cache* cache, int num_tokens) {
  if (cache == nullptr) return {{num_tokens, 0}};
  auto* batch = dynamic_cast<const BatchCache*>(cache);
  if (batch == nullptr) return {{num_tokens, cache->offset()}};
  std::vector<kernels::TokenRun> runs;
  for (std::size_t i = 0; i < batch->count(); ++i) {
    runs.push_back({batch->num_tokens()[i], (*batch)[i]->offset()});
  }
  return runs;
}

PromptCache join_rows(const std::vector<const PromptCache*>& rows,
                      const std::vector<int>& num_tokens) {
  if (rows.size() == 1) return *rows[0];
  PromptCache joined;
  for (std::size_t layer = 0; layer < rows[0]->size(); ++layer) {
    std::vector<CachePtr> caches;
    for (const PromptCache* row : rows) caches.push_back(row->at(layer));
    joined.push_back(
        std::make_shared<BatchCache>(std::move(caches), num_tokens));
  }
  return joined;
}

std::vector<mx::array> split_tokens(const mx::array& x,
                                    const std::vector<int>& num_tokens,
                                    int axis) {
  // One node of the graph, however many rows there are.
  mx::Shape ends;
  int end = 0;
  for (std::size_t i = 0; i + 1 < num_tokens.size(); ++i) {
    ends.push_back(end += num_tokens[i]);
  }
  return mx::split(x, ends, axis);
}

mx::array take_positions(const mx::array& x,
                         const std::vector<int>& positions) {
  const int count = static_cast<int>(positions.size());
  if (count == x.shape(1)) return x;
  return mx::take(x, mx::array(positions.data(), {count}, mx::int32), 1);
}

mx::array join_tokens(std::vector<mx::array> parts, int axis) {
  return parts.size() == 1 ? parts[0] : mx::concatenate(std::move(parts), axis);
}

}  // namespace mlxlm
