#include "cache/cache_list.h"

#include <algorithm>

#include <mlxlm/error.h>

#include "cache/kinds.h"
#include "cache/state_reader.h"

namespace mlxlm {
namespace {

struct ListCheckpoint : CacheCheckpoint {
  std::vector<CachePtr> caches;
  std::vector<std::unique_ptr<CacheCheckpoint>> parts;
};

}  // namespace

CacheList::CacheList(std::vector<CachePtr> caches)
    : caches_(std::move(caches)) {
  if (caches_.empty() || std::ranges::count(caches_, nullptr) > 0) {
    throw Error(ErrorKind::argument,
                "a cache list needs at least one cache, and no null ones");
  }
}

int CacheList::offset() const {
  int longest = 0;
  for (const auto& cache : caches_) {
    longest = std::max(longest, cache->offset());
  }
  return longest;
}

int CacheList::size() const {
  int largest = 0;
  for (const auto& cache : caches_) {
    largest = std::max(largest, cache->size());
  }
  return largest;
}

std::size_t CacheList::nbytes() const {
  std::size_t sum = 0;
  for (const auto& cache : caches_) {
    sum += cache->nbytes();
  }
  return sum;
}

CacheCapabilities CacheList::capabilities() const {
  CacheCapabilities all = caches_.front()->capabilities();
  for (std::size_t i = 1; i < caches_.size(); ++i) {
    CacheCapabilities one = caches_[i]->capabilities();
    all.attends = all.attends || one.attends;
    all.trimmable_tokens = std::min(all.trimmable_tokens, one.trimmable_tokens);
    all.always_trimmable = all.always_trimmable && one.always_trimmable;
    all.quantizable = all.quantizable || one.quantizable;
    all.quantization = all.quantization ? all.quantization : one.quantization;
    all.checkpoint_bytes += one.checkpoint_bytes;
  }
  return all;
}

bool CacheList::is_trimmable_after(int num_tokens) const {
  return std::ranges::all_of(caches_, [&](const CachePtr& cache) {
    return cache->is_trimmable_after(num_tokens);
  });
}

int CacheList::trim(int num_tokens) {
  return trim_prompt_cache(caches_, num_tokens);
}

std::unique_ptr<CacheCheckpoint> CacheList::checkpoint() const {
  auto checkpoint = std::make_unique<ListCheckpoint>();
  checkpoint->caches = caches_;
  for (const auto& cache : caches_) {
    checkpoint->parts.push_back(cache->checkpoint());
  }
  return checkpoint;
}

void CacheList::rollback(const CacheCheckpoint& checkpoint) {
  auto* own = dynamic_cast<const ListCheckpoint*>(&checkpoint);
  if (own == nullptr) {
    throw_foreign_checkpoint(kind());
  }
  caches_ = own->caches;
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    caches_[i]->rollback(*own->parts[i]);
  }
}

CachePtr CacheList::fork() const {
  return std::make_shared<CacheList>(fork_prompt_cache(caches_));
}

CachePtr CacheList::to_quantized(const KvQuantization& quantization) const {
  std::vector<CachePtr> caches;
  bool changed = false;
  for (const auto& cache : caches_) {
    CachePtr quantized = cache->to_quantized(quantization);
    changed = changed || quantized != nullptr;
    caches.push_back(quantized ? quantized : cache->fork());
  }
  return changed ? make_cache_list(std::move(caches)) : nullptr;
}

CacheState CacheList::state() const {
  CacheState::List list;
  for (const auto& cache : caches_) {
    CacheState::List entry{cache->state(),
                           state_of(std::string(cache->kind()))};
    list.push_back({std::move(entry)});
  }
  return {std::move(list)};
}

void CacheList::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  std::vector<CachePtr> caches;
  for (const CacheState& item : reader.list()) {
    StateReader entry(kind(), item);
    entry.expect_size(2);
    auto* name = std::get_if<std::string>(&entry.list()[1].value);
    if (name == nullptr) {
      entry.fail("an entry has no class name");
    }
    if (*name == kind()) {
      entry.fail("it holds another list");
    }
    caches.push_back(cache_from_state(*name, entry.list()[0]));
  }
  if (caches.empty()) {
    reader.fail("it is empty");
  }
  caches_ = std::move(caches);
}

void CacheList::append_arrays_to(std::vector<mx::array>& out) const {
  for (const auto& cache : caches_) {
    cache->append_arrays_to(out);
  }
}

CachePtr make_cache_list(std::vector<CachePtr> caches) {
  return std::make_shared<CacheList>(std::move(caches));
}

}  // namespace mlxlm
