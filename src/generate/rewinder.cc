#include "generate/rewinder.h"

#include <algorithm>

#include "cache/cache_list.h"
#include "cache/rotating_cache.h"
#include "generate/prefill.h"

namespace mlxlm {
namespace {

// With kept first tokens, a rotating cache shows several tokens at once
// something else than one after the other.
bool keeps_first_tokens(const Cache& cache) {
  if (auto* list = dynamic_cast<const CacheList*>(&cache)) {
    for (std::size_t i = 0; i < list->count(); ++i) {
      if (keeps_first_tokens(*(*list)[i])) {
        return true;
      }
    }
    return false;
  }
  auto* rotating = dynamic_cast<const RotatingKVCache*>(&cache);
  return rotating != nullptr && rotating->keep() > 0;
}

}  // namespace

Rewinder::Rewinder(ModelPtr model, PromptCache& cache)
    : model_(std::move(model)), cache_(cache) {
  for (const auto& layer : cache_) {
    if (keeps_first_tokens(*layer)) {
      throw Error(ErrorKind::unsupported,
                  "speculative decoding needs a cache that can be trimmed; a "
                  "rotating one that keeps its first tokens (max-kv-size) "
                  "can't: leave max-kv-size or the draft model out");
    }
  }
}

void Rewinder::begin(int max_tokens) {
  points_.clear();
  bool all_trimmable = std::ranges::all_of(cache_, [&](const CachePtr& layer) {
    return layer->is_trimmable_after(max_tokens);
  });
  if (all_trimmable) {
    return;
  }
  for (const auto& layer : cache_) {
    // A checkpoint makes the next update copy; so only where it is needed.
    bool trimmable = layer->is_trimmable_after(max_tokens);
    points_.push_back({layer, trimmable ? nullptr : layer->checkpoint()});
  }
}

void Rewinder::rewind(const std::vector<int>& read, int num_kept) {
  int num_read = static_cast<int>(read.size());
  if (num_kept >= num_read) {
    return;
  }
  if (points_.empty()) {
    for (const auto& layer : cache_) {
      layer->trim(num_read - num_kept);
    }
    return;
  }
  for (std::size_t i = 0; i < cache_.size(); ++i) {
    if (points_[i].checkpoint) {
      cache_[i] = points_[i].layer;
      cache_[i]->rollback(*points_[i].checkpoint);
    } else {
      cache_[i]->trim(num_read);
    }
  }
  points_.clear();
  if (num_kept > 0) {
    // Evaluated with the next round.
    model_->forward(token_row({read.begin(), read.begin() + num_kept}), cache_);
  }
}

}  // namespace mlxlm
