#include "nn/ngram_embedding.h"

#include <algorithm>
#include <cstdint>

#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/batch_cache.h"
#include "nn/linear.h"

namespace mlxlm::nn {
namespace {

// tokens [B, T] from `begin` on.
mx::array from(const mx::array& tokens, int begin) {
  return mx::slice(tokens, {0, begin}, tokens.shape());
}

// With what the cache has of the tokens before; leaves it the latest `keep`.
mx::array with_context(const mx::array& tokens, Cache* cache, int keep) {
  if (cache == nullptr) return tokens;
  auto& held = dynamic_cast<ArraysCache&>(*cache);
  const auto all = held[0] ? mx::concatenate({*held[0], tokens}, 1) : tokens;
  held.set(0, from(all, std::max(0, all.shape(1) - keep)));
  return all;
}

}  // namespace

mx::array NgramEmbedding::rows_of(const mx::array& tokens,
                                  int table,
                                  int count) const {
  const auto size = static_cast<std::int64_t>(num_rows[table]);
  const int length = 2 + table / tables_per_length;
  auto sum = tokens;
  std::int64_t factor = 1;
  for (int back = 1; back < length; ++back) {
    factor = factor * vocabulary_size % size;
    if (back >= tokens.shape(1)) break;
    // Before the first token there are zeros.
    auto shifted = mx::pad(
        mx::slice(tokens, {0, 0}, {tokens.shape(0), tokens.shape(1) - back}),
        std::vector<int>{1},
        {back},
        {0});
    sum = mx::add(sum, mx::multiply(shifted, mx::array(factor)));
  }
  return from(mx::remainder(sum, mx::array(size)), tokens.shape(1) - count);
}

mx::array NgramEmbedding::operator()(const mx::array& tokens,
                                     const mx::array& own,
                                     Cache* cache) const {
  const auto wide = mx::astype(tokens, mx::int64);
  std::vector<mx::array> contexts;
  each_row(wide, cache, [&](const mx::array& row, Cache* row_cache) {
    contexts.push_back(with_context(row, row_cache, longest - 1));
    return row;
  });
  const auto row_lengths = token_runs(cache, tokens.shape(1));
  auto sum = own;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    std::vector<mx::array> rows;
    for (std::size_t row = 0; row < contexts.size(); ++row) {
      rows.push_back(rows_of(
          contexts[row], static_cast<int>(i), row_lengths[row].num_tokens));
    }
    auto looked_up = embed(tables[i], join_tokens(rows, 1), own.dtype());
    sum = mx::add(sum, apply(looked_up, projections[i]));
  }
  const mx::array count(static_cast<float>(1 + tables.size()), own.dtype());
  return mx::divide(sum, count);
}

}  // namespace mlxlm::nn
