#include "generate/rewindable_cache.h"

#include <algorithm>

namespace mlxlm {
namespace {

bool needs_copy(const CachePtr& layer) {
  return !layer->capabilities().always_trimmable;
}

}  // namespace

bool RewindableCache::needs_marks() const {
  return std::ranges::any_of(layers_, needs_copy);
}

void RewindableCache::mark(int num_tokens, std::size_t max_bytes) {
  if (!needs_marks() ||
      (!marks_.empty() && marks_.back().num_tokens == num_tokens)) {
    return;
  }
  Mark mark{.num_tokens = num_tokens};
  for (const CachePtr& layer : layers_) {
    mark.copies.push_back(needs_copy(layer) ? layer->fork() : nullptr);
    mark.nbytes += mark.copies.back() ? layer->nbytes() : 0;
  }
  marks_.push_back(std::move(mark));
  while (marks_.size() > 1 && mark_bytes() > max_bytes) {
    marks_.erase(marks_.begin() + (marks_.size() > 2 ? 1 : 0));
  }
}

void RewindableCache::trim_to(std::size_t layer, int num_tokens) {
  layers_[layer]->trim(std::max(0, layers_[layer]->offset() - num_tokens));
}

void RewindableCache::restore(const Mark& mark) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (mark.copies[i]) {
      layers_[i] = mark.copies[i]->fork();
    } else {
      trim_to(i, mark.num_tokens);
    }
  }
}

int RewindableCache::rewind(int num_tokens, int target) {
  if (target >= num_tokens) {
    return num_tokens;
  }
  bool can_trim = trimmable_tokens(layers_) >= num_tokens - target;
  auto later = std::ranges::find_if(
      marks_, [&](const Mark& mark) { return mark.num_tokens > target; });
  marks_.erase(later, marks_.end());
  if (target > 0 && can_trim) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      trim_to(i, target);
    }
    return target;
  }
  if (marks_.empty()) {
    clear();
    return 0;
  }
  restore(marks_.back());
  return marks_.back().num_tokens;
}

void RewindableCache::clear() {
  layers_.clear();
  marks_.clear();
}

RewindableCache RewindableCache::fork() const {
  RewindableCache copy(fork_prompt_cache(layers_));
  copy.marks_ = marks_;
  return copy;
}

std::size_t RewindableCache::mark_bytes() const {
  std::size_t sum = 0;
  for (const Mark& mark : marks_) {
    sum += mark.nbytes;
  }
  return sum;
}

}  // namespace mlxlm
