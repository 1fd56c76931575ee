#include "cache/prefix_parts.h"

#include <algorithm>
#include <set>
#include <sstream>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/cache_list.h"
#include "cache/kinds.h"
#include "cache/kv_cache.h"
#include "cache/settle.h"
#include "cache/state_reader.h"

namespace mlxlm {
namespace {

// The caches of all layers; those of a list one by one.
std::vector<CachePtr> leaves_of(const PromptCache& cache) {
  std::vector<CachePtr> leaves;
  for (const CachePtr& layer : cache) {
    if (auto* list = dynamic_cast<const CacheList*>(layer.get())) {
      for (std::size_t i = 0; i < list->count(); ++i) {
        leaves.push_back((*list)[i]);
      }
    } else {
      leaves.push_back(layer);
    }
  }
  return leaves;
}

// Null if the cache can lose more than its newest tokens.
const AttentionCache* as_growing(const Cache& cache) {
  return cache.capabilities().always_trimmable
             ? dynamic_cast<const AttentionCache*>(&cache)
             : nullptr;
}

// What must be equal for rows to stand in one buffer.
std::string format_of(const AttentionCache& cache) {
  std::ostringstream text;
  for (const Rows* rows : {&cache.rows().keys, &cache.rows().values}) {
    text << ' ' << rows->format().bits << '/' << rows->format().group_size;
    for (const mx::array& array : rows->arrays()) {
      text << ' ' << array.shape(0) << 'x' << array.shape(1) << 'x'
           << array.shape(3) << array.dtype();
    }
  }
  return text.str();
}

CacheState copied(const CacheState& state) {
  if (auto* array = std::get_if<mx::array>(&state.value)) {
    if (array->ndim() == 0) {
      return state;
    }
    // With nothing behind it, so that there is something to be computed.
    mx::Shape stop = array->shape();
    stop[0] = 0;
    auto nothing = mx::slice(*array, mx::Shape(array->ndim(), 0), stop);
    return {mx::concatenate({*array, nothing}, 0)};
  }
  if (auto* list = std::get_if<CacheState::List>(&state.value)) {
    CacheState::List items;
    for (const CacheState& item : *list) {
      items.push_back(copied(item));
    }
    return {std::move(items)};
  }
  return state;
}

// Shares nothing with the cache, which may go on in another thread.
CachePtr deep_copy(const Cache& cache) {
  return cache_from_state(cache.kind(), copied(cache.fork()->state()));
}

std::size_t bytes_per_row(const KeysAndValues& rows) {
  return rows.empty() ? 0
                      : rows.nbytes() / static_cast<std::size_t>(rows.count());
}

KeysAndValues joined(const std::vector<KeysAndValues>& parts) {
  std::vector<Rows> keys;
  std::vector<Rows> values;
  for (const KeysAndValues& part : parts) {
    keys.push_back(part.keys);
    values.push_back(part.values);
  }
  return {Rows::joined(keys), Rows::joined(values)};
}

// One growing cache of the first `num_tokens` rows of `parts`, its `index`-th.
CachePtr grown(const std::string& kind,
               const std::vector<const PrefixRows*>& parts,
               std::size_t index,
               int num_tokens) {
  KeysAndValues all = parts.at(0)->caches.at(index);
  const bool concatenates = kind == "ConcatenateKVCache";
  if (all.empty()) {  // a layer that nothing was read into
    return concatenates ? cache_from_state(kind, state_with(all, {}))
                        : std::make_shared<KVCache>(all, 0);
  }
  std::vector<KeysAndValues> pieces;
  int left = num_tokens;
  for (const PrefixRows* part : parts) {
    const KeysAndValues& rows = part->caches.at(index);
    int count = std::min(rows.count(), left);
    if (count > 0) {
      pieces.push_back(count == rows.count() ? rows : rows.slice(0, count));
    }
    left -= count;
  }
  int room =
      concatenates ? 0 : kCacheStepTokens - num_tokens % kCacheStepTokens;
  pieces.push_back(all.zeros(room));
  all = joined(pieces);
  return concatenates ? cache_from_state(kind, state_with(all, {}))
                      : std::make_shared<KVCache>(std::move(all), num_tokens);
}

}  // namespace

std::size_t PrefixRows::nbytes() const {
  std::size_t sum = 0;
  for (const KeysAndValues& rows : caches) {
    sum += rows.nbytes();
  }
  return sum;
}

PrefixRows PrefixRows::part(int from, int to) const {
  PrefixRows part;
  std::vector<mx::array> arrays;
  for (const KeysAndValues& rows : caches) {
    part.caches.push_back(rows.slice(from, to).copied());
    part.caches.back().append_arrays_to(arrays);
  }
  settle(std::move(arrays));
  return part;
}

std::size_t PrefixState::nbytes() const { return prompt_cache_nbytes(caches); }

PrefixLayout::PrefixLayout(const PromptCache& cache, int num_tokens) {
  for (const CachePtr& layer : cache) {
    auto* list = dynamic_cast<const CacheList*>(layer.get());
    layers_.push_back(list == nullptr ? 0 : list->count());
    signature_ += std::to_string(layers_.back()) + ";";
  }
  for (const CachePtr& leaf : leaves_of(cache)) {
    int offset = leaf->offset();
    if (offset != num_tokens && !leaf->empty() &&
        leaf->capabilities().attends) {
      throw Error(ErrorKind::argument,
                  "a " + std::string(leaf->kind()) + " has read " +
                      std::to_string(offset) + " tokens, not the " +
                      std::to_string(num_tokens) + " that are named");
    }
    auto* growing = as_growing(*leaf);
    caches_.push_back({std::string(leaf->kind()), growing != nullptr});
    num_states_ += growing == nullptr ? 1 : 0;
    signature_ += caches_.back().kind;
    signature_ += growing == nullptr ? "" : format_of(*growing);
    signature_ += ";";
  }
}

std::string PrefixLayout::kinds_of_states() const {
  std::set<std::string> kinds;
  for (const Part& part : caches_) {
    if (!part.grows) {
      kinds.insert(part.kind);
    }
  }
  std::string text;
  for (const std::string& kind : kinds) {
    text += (text.empty() ? "" : ", ") + kind;
  }
  return text;
}

std::size_t PrefixLayout::rows_nbytes(const PromptCache& cache,
                                      int num_tokens) const {
  std::size_t sum = 0;
  for (const CachePtr& leaf : leaves_of(cache)) {
    auto* growing = as_growing(*leaf);
    sum += growing == nullptr ? 0 : bytes_per_row(growing->rows());
  }
  return sum * static_cast<std::size_t>(num_tokens);
}

std::size_t PrefixLayout::state_nbytes(const PromptCache& cache) const {
  std::size_t sum = 0;
  for (const CachePtr& leaf : leaves_of(cache)) {
    sum += as_growing(*leaf) == nullptr ? leaf->nbytes() : 0;
  }
  return sum;
}

PrefixRows PrefixLayout::rows_of(const PromptCache& cache,
                                 int from,
                                 int to) const {
  PrefixRows all;
  for (const CachePtr& leaf : leaves_of(cache)) {
    if (auto* growing = as_growing(*leaf)) {
      all.caches.push_back(growing->rows());
    }
  }
  return all.part(from, to);
}

PrefixState PrefixLayout::state_of(const PromptCache& cache) const {
  PrefixState state;
  for (const CachePtr& leaf : leaves_of(cache)) {
    if (as_growing(*leaf) == nullptr) {
      state.caches.push_back(deep_copy(*leaf));
    }
  }
  std::vector<mx::array> arrays;
  for (const CachePtr& copy : state.caches) {
    copy->append_arrays_to(arrays);
  }
  settle(std::move(arrays));
  return state;
}

PromptCache PrefixLayout::assembled(const std::vector<const PrefixRows*>& rows,
                                    int num_tokens,
                                    const PrefixState* state,
                                    int num_trimmed) const {
  std::vector<CachePtr> leaves;
  std::size_t row = 0;
  std::size_t other = 0;
  for (const Part& part : caches_) {
    if (part.grows) {
      leaves.push_back(grown(part.kind, rows, row++, num_tokens));
    } else {
      leaves.push_back(deep_copy(*state->caches.at(other++)));
      if (num_trimmed > 0) {
        leaves.back()->trim(num_trimmed);
      }
    }
  }
  PromptCache cache;
  auto next = leaves.begin();
  for (std::size_t count : layers_) {
    auto last =
        next + static_cast<std::ptrdiff_t>(std::max<std::size_t>(count, 1));
    cache.push_back(count == 0 ? *next : make_cache_list({next, last}));
    next = last;
  }
  evaluate_prompt_cache(cache);
  return cache;
}

}  // namespace mlxlm
