// PrefixStore: tries of all keys under one lock and one budget.
#include <algorithm>
#include <mutex>

#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

#include "cache/prefix_spill.h"
#include "cache/prefix_tree.h"

namespace mlxlm {
namespace {

std::string tokens_text(int count) {
  return count == 1 ? "1 token" : std::to_string(count) + " tokens";
}

// The limit in a sentence. `kinds`: of the caches that can't be cut.
std::string reason_for(const PrefixMatch& match, const std::string& kinds) {
  switch (match.limit) {
    case PrefixLimit::none:
      return "";
    case PrefixLimit::unknown:
      return "nothing that is stored begins like the prompt";
    case PrefixLimit::ends:
      return "no more than these " + tokens_text(match.matched_tokens) +
             " of the prompt are stored";
    case PrefixLimit::differs:
      return "what is stored differs from the prompt after " +
             tokens_text(match.matched_tokens);
    case PrefixLimit::checkpoint:
      return tokens_text(match.matched_tokens) + " are the same, but " + kinds +
             " can't be cut, and the last checkpoint before is at " +
             std::to_string(match.reused_tokens);
    case PrefixLimit::evicted:
      return "what was stored after " + tokens_text(match.matched_tokens) +
             " had to make room";
  }
  return "";
}

// Of a prompt, how much can be reused: its last token must be read.
int most_of(std::span<const int> tokens) {
  return std::max(static_cast<int>(tokens.size()) - 1, 0);
}

PrefixLimit limit_of(const PrefixPath& path, int reused, int most) {
  if (reused == most) {
    return PrefixLimit::none;
  }
  if (reused < std::min(path.matched, most)) {
    return PrefixLimit::checkpoint;
  }
  if (path.evicted) {
    return PrefixLimit::evicted;
  }
  if (path.nodes.empty()) {
    return PrefixLimit::unknown;
  }
  const PrefixNode& last = *path.nodes.back();
  bool ends = path.matched == last.end && last.children.empty();
  return ends ? PrefixLimit::ends : PrefixLimit::differs;
}

}  // namespace

class PrefixStore::Impl {
 public:
  explicit Impl(const PrefixStoreOptions& options) : options_(options) {
    if (!options.spill_folder.empty()) {
      spill_.emplace(options.spill_folder, options.max_spill_bytes);
    }
  }

  PrefixMatch find(const std::string& key, std::span<const int> tokens) {
    std::lock_guard lock(mutex_);
    Found found = look_up(key, tokens);
    const int most = most_of(tokens);
    if (spill_ && found.source.num_tokens < most &&
        restore(key, tokens, found.source.num_tokens)) {
      found = look_up(key, tokens);
    }
    PrefixMatch match;
    match.matched_tokens = found.path.matched;
    match.reused_tokens = found.source.num_tokens;
    match.limit = limit_of(found.path, match.reused_tokens, most);
    if (match.reused_tokens > 0) {
      match.cache = found.tree->take(found.path, found.source, ++clock_);
    }
    match.reason = reason_for(
        match, found.tree ? found.tree->layout().kinds_of_states() : "");
    ++counts_.num_lookups;
    counts_.looked_up_tokens += tokens.size();
    counts_.reused_tokens += static_cast<std::uint64_t>(match.reused_tokens);
    return match;
  }

  bool put(const std::string& key,
           std::span<const int> tokens,
           const PromptCache& cache) {
    std::lock_guard lock(mutex_);
    return add(key, tokens, cache);
  }

  void trim_to(std::size_t max_bytes) {
    std::lock_guard lock(mutex_);
    while (nbytes() > max_bytes && evict_oldest(UINT64_MAX)) {
    }
    forget_empty_trees();
  }

  bool spills() const { return spill_.has_value(); }
  std::size_t max_bytes() const { return options_.max_bytes; }

  PrefixStoreStatistics statistics() const {
    std::lock_guard lock(mutex_);
    PrefixStoreStatistics all = counts_;
    all.nbytes = nbytes();
    for (const auto& [_, tree] : trees_) {
      all.num_runs += tree.count();
    }
    if (spill_) {
      all.spilled_bytes = spill_->nbytes();
      all.num_spilled_files = spill_->count();
    }
    return all;
  }

 private:
  struct Found {
    PrefixTree* tree = nullptr;
    PrefixPath path;
    PrefixSource source;
  };

  using Trees = std::map<std::pair<std::string, std::string>, PrefixTree>;

  // The trees of a key, one per layout.
  std::pair<Trees::iterator, Trees::iterator> trees_of(const std::string& key) {
    auto first = trees_.lower_bound({key, ""});
    auto last = first;
    while (last != trees_.end() && last->first.first == key) {
      ++last;
    }
    return {first, last};
  }

  Found look_up(const std::string& key, std::span<const int> tokens) {
    Found best;
    auto [first, last] = trees_of(key);
    for (auto entry = first; entry != last; ++entry) {
      Found found{&entry->second, entry->second.follow(tokens), {}};
      found.source = found.tree->source(found.path, most_of(tokens));
      auto rank = [](const Found& f) {
        return std::pair(f.source.num_tokens, f.path.matched);
      };
      if (best.tree == nullptr || rank(found) > rank(best)) {
        best = std::move(found);
      }
    }
    return best;
  }

  // Brings back from the folder what is worth more than `least_tokens`.
  bool restore(const std::string& key,
               std::span<const int> tokens,
               int least_tokens) {
    const int most = most_of(tokens);
    while (auto* file = spill_->best(key, tokens, least_tokens, most)) {
      const std::vector<int> stored = file->tokens;
      if (auto cache = spill_->read(*file)) {
        return add(key, stored, *cache);
      }
    }
    return false;
  }

  bool add(const std::string& key,
           std::span<const int> tokens,
           const PromptCache& cache) {
    if (tokens.empty()) {
      return true;
    }
    PrefixLayout layout(cache, static_cast<int>(tokens.size()));
    std::pair id(key, layout.signature());
    PrefixTree& tree = trees_.try_emplace(std::move(id), layout).first->second;
    const std::uint64_t now = ++clock_;
    tree.touch(tokens, now);
    bool fits = true;
    while (fits &&
           nbytes() + tree.bytes_to_add(tokens, cache) > options_.max_bytes) {
      fits = evict_oldest(now);
    }
    if (fits) {
      tree.add(tokens, cache, now);
    }
    forget_empty_trees();
    return fits;
  }

  // Drops what was used longest ago, if that is before `now`.
  bool evict_oldest(std::uint64_t now) {
    std::pair<PrefixTree*, PrefixNode*> oldest{};
    const std::pair<std::string, std::string>* id = nullptr;
    for (auto& [tree_id, tree] : trees_) {
      PrefixNode* node = tree.oldest();
      if (node != nullptr &&
          (id == nullptr ||
           PrefixTree::age_of(*node) < PrefixTree::age_of(*oldest.second))) {
        oldest = {&tree, node};
        id = &tree_id;
      }
    }
    if (id == nullptr || PrefixTree::age_of(*oldest.second) >= now) {
      return false;
    }
    auto [tree, node] = oldest;
    if (spill_) {
      spill_->write(id->first,
                    PrefixTree::tokens_of(*node),
                    tree->cache_of(*node),
                    !tree->layout().has_states());
    }
    tree->evict(*node);
    ++counts_.evictions;
    return true;
  }

  void forget_empty_trees() {
    std::erase_if(trees_,
                  [](const auto& entry) { return entry.second.empty(); });
  }

  std::size_t nbytes() const {
    std::size_t sum = 0;
    for (const auto& [_, tree] : trees_) {
      sum += tree.nbytes();
    }
    return sum;
  }

  PrefixStoreOptions options_;
  mutable std::mutex mutex_;
  std::optional<PrefixSpill> spill_;
  Trees trees_;
  std::uint64_t clock_ = 0;
  PrefixStoreStatistics counts_;
};

PrefixStore::PrefixStore(const PrefixStoreOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}
PrefixStore::~PrefixStore() = default;

PrefixMatch PrefixStore::find(const std::string& key,
                              std::span<const int> tokens) {
  return impl_->find(key, tokens);
}

bool PrefixStore::put(const std::string& key,
                      std::span<const int> tokens,
                      const PromptCache& cache) {
  return impl_->put(key, tokens, cache);
}

void PrefixStore::trim_to(std::size_t max_bytes) { impl_->trim_to(max_bytes); }

bool PrefixStore::spills() const { return impl_->spills(); }

std::size_t PrefixStore::max_bytes() const { return impl_->max_bytes(); }

PrefixStoreStatistics PrefixStore::statistics() const {
  return impl_->statistics();
}

}  // namespace mlxlm
