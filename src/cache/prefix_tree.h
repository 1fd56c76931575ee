// The stored prefixes of one key and layout, as a trie of token runs.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/prefix_parts.h"

namespace mlxlm {

struct PrefixNode {
  PrefixNode* parent = nullptr;         // null: the root
  int end = 0;                          // tokens from the root to here
  std::vector<int> tokens;              // those that lead here from the parent
  PrefixRows rows;                      // theirs
  std::optional<PrefixState> state;     // after them
  std::map<int, PrefixNode*> children;  // by their first token
  // The first tokens of children that were evicted, as far as remembered.
  std::set<int> evicted;
  // Ticks of the store's clock.
  std::uint64_t used = 0;
  std::uint64_t state_used = 0;

  int start() const { return end - static_cast<int>(tokens.size()); }
  std::size_t nbytes() const;
};

// How far a prompt goes along with what is stored.
struct PrefixPath {
  // From below the root on; of the last one a part may be left over.
  std::vector<PrefixNode*> nodes;
  int matched = 0;
  // The next tokens were stored, and evicted.
  bool evicted = false;
};

// What can be had of a path: a whole state, or rows alone.
struct PrefixSource {
  int num_tokens = 0;
  PrefixNode* state = nullptr;  // whose state; null: none is needed
};

class PrefixTree {
 public:
  explicit PrefixTree(PrefixLayout layout);
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  const PrefixLayout& layout() const { return layout_; }
  std::size_t nbytes() const { return nbytes_; }
  bool empty() const { return nodes_.empty(); }
  std::size_t count() const { return nodes_.size(); }

  PrefixPath follow(std::span<const int> tokens);

  // The longest prefix of a path, `most_tokens` at most, that a cache can be
  // made of.
  PrefixSource source(const PrefixPath& path, int most_tokens) const;
  // That cache; counts as a use of what it is made of.
  PromptCache take(const PrefixPath& path,
                   const PrefixSource& source,
                   std::uint64_t now);

  // Bytes that add() would need at least.
  std::size_t bytes_to_add(std::span<const int> tokens,
                           const PromptCache& cache);
  // Stores what the tree doesn't have of a cache that has read `tokens`, of
  // which there is at least one.
  void add(std::span<const int> tokens,
           const PromptCache& cache,
           std::uint64_t now);
  // Counts as a use of what leads along these tokens.
  void touch(std::span<const int> tokens, std::uint64_t now);

  // What eviction can drop: a node without children, or the state of another.
  // The one that was used longest ago, if any.
  PrefixNode* oldest();
  static std::uint64_t age_of(const PrefixNode& node);
  // Drops it, and what is of no use without it.
  void evict(PrefixNode& node);

  // The whole cache of a node and its tokens.
  PromptCache cache_of(PrefixNode& node) const;
  static std::vector<int> tokens_of(const PrefixNode& node);

 private:
  PrefixNode& make_node(PrefixNode& parent, std::span<const int> tokens);
  PrefixNode& split(PrefixNode& node, int num_tokens);
  void remove(PrefixNode& node);
  PromptCache assembled(const std::vector<const PrefixNode*>& nodes,
                        const PrefixSource& source) const;

  PrefixLayout layout_;
  PrefixNode root_;
  // Flat, so that nothing recurses however deep the tree is.
  std::unordered_map<const PrefixNode*, std::unique_ptr<PrefixNode>> nodes_;
  std::size_t nbytes_ = 0;
};

}  // namespace mlxlm
