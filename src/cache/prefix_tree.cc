#include "cache/prefix_tree.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "core/common_length.h"

namespace mlxlm {
namespace {

// Of each node; more would only make reasons better.
constexpr std::size_t kRememberedEvictions = 32;

std::size_t node_nbytes(std::size_t num_tokens) {
  return sizeof(PrefixNode) + num_tokens * sizeof(int);
}

}  // namespace

std::size_t PrefixNode::nbytes() const {
  return node_nbytes(tokens.size()) + rows.nbytes() +
         (state ? state->nbytes() : 0);
}

PrefixTree::PrefixTree(PrefixLayout layout) : layout_(std::move(layout)) {}

PrefixPath PrefixTree::follow(std::span<const int> tokens) {
  PrefixPath path;
  PrefixNode* at = &root_;
  while (!tokens.empty()) {
    auto child = at->children.find(tokens[0]);
    if (child == at->children.end()) {
      path.evicted = at->evicted.contains(tokens[0]);
      break;
    }
    at = child->second;
    path.nodes.push_back(at);
    int common = common_length(at->tokens, tokens);
    path.matched += common;
    if (common < static_cast<int>(at->tokens.size())) {
      break;
    }
    tokens = tokens.subspan(at->tokens.size());
  }
  return path;
}

PrefixSource PrefixTree::source(const PrefixPath& path, int most_tokens) const {
  int wanted = std::min(path.matched, most_tokens);
  if (!layout_.has_states()) {
    return {wanted, nullptr};
  }
  PrefixSource best;
  auto consider = [&](PrefixNode* node) {
    if (!node->state) {
      return;
    }
    int tokens = std::min(node->end, wanted);
    int surplus = node->end - tokens;
    if (tokens > best.num_tokens &&
        (surplus == 0 || surplus <= node->state->trimmable_tokens())) {
      best = {tokens, node};
    }
  };
  for (PrefixNode* node : path.nodes) {
    consider(node);
  }
  // A state further on may still be able to go back to here.
  PrefixNode* beyond = path.nodes.empty() ? nullptr : path.nodes.back();
  while (beyond != nullptr && best.num_tokens < wanted) {
    consider(beyond);
    beyond = beyond->children.empty() || beyond->state
                 ? nullptr
                 : beyond->children.begin()->second;
  }
  return best;
}

PromptCache PrefixTree::assembled(const std::vector<const PrefixNode*>& nodes,
                                  const PrefixSource& source) const {
  std::vector<const PrefixRows*> rows;
  for (const PrefixNode* node : nodes) {
    if (node->start() < source.num_tokens) {
      rows.push_back(&node->rows);
    }
  }
  bool states = source.state != nullptr;
  return layout_.assembled(rows,
                           source.num_tokens,
                           states ? &*source.state->state : nullptr,
                           states ? source.state->end - source.num_tokens : 0);
}

PromptCache PrefixTree::take(const PrefixPath& path,
                             const PrefixSource& source,
                             std::uint64_t now) {
  for (PrefixNode* node : path.nodes) {
    if (node->start() < source.num_tokens) {
      node->used = now;
    }
  }
  if (source.state != nullptr) {
    source.state->used = source.state->state_used = now;
  }
  return assembled({path.nodes.begin(), path.nodes.end()}, source);
}

std::size_t PrefixTree::bytes_to_add(std::span<const int> tokens,
                                     const PromptCache& cache) {
  PrefixPath path = follow(tokens);
  auto num_new = static_cast<int>(tokens.size()) - path.matched;
  const PrefixNode* last = path.nodes.empty() ? &root_ : path.nodes.back();
  bool splits = path.matched < last->end;
  bool has_state = num_new == 0 && !splits && last->state.has_value();
  std::size_t sum = splits ? sizeof(PrefixNode) : 0;
  if (num_new > 0) {
    sum += node_nbytes(static_cast<std::size_t>(num_new)) +
           layout_.rows_nbytes(cache, num_new);
  }
  return sum + (has_state ? 0 : layout_.state_nbytes(cache));
}

PrefixNode& PrefixTree::make_node(PrefixNode& parent,
                                  std::span<const int> tokens) {
  auto made = std::make_unique<PrefixNode>();
  PrefixNode& node = *made;
  nodes_.emplace(&node, std::move(made));
  node.parent = &parent;
  node.end = parent.end + static_cast<int>(tokens.size());
  node.tokens.assign(tokens.begin(), tokens.end());
  parent.children[tokens[0]] = &node;
  parent.evicted.erase(tokens[0]);
  return node;
}

// Puts a node of the first `num_tokens` above the rest, and returns it.
PrefixNode& PrefixTree::split(PrefixNode& node, int num_tokens) {
  const int count = static_cast<int>(node.tokens.size());
  PrefixRows head = node.rows.part(0, num_tokens);
  PrefixRows tail = node.rows.part(num_tokens, count);
  nbytes_ -= node.nbytes();
  std::span<const int> tokens(node.tokens);
  PrefixNode& upper = make_node(
      *node.parent, tokens.first(static_cast<std::size_t>(num_tokens)));
  upper.rows = std::move(head);
  upper.used = node.used;
  node.tokens.erase(node.tokens.begin(), node.tokens.begin() + num_tokens);
  node.rows = std::move(tail);
  node.parent = &upper;
  upper.children[node.tokens[0]] = &node;
  nbytes_ += upper.nbytes() + node.nbytes();
  return upper;
}

void PrefixTree::add(std::span<const int> tokens,
                     const PromptCache& cache,
                     std::uint64_t now) {
  // All that can fail comes before the tree changes.
  PrefixPath path = follow(tokens);
  const int end = static_cast<int>(tokens.size());
  PrefixRows rows;
  if (path.matched < end) {
    rows = layout_.rows_of(cache, path.matched, end);
  }
  PrefixNode* at = path.nodes.empty() ? &root_ : path.nodes.back();
  std::optional<PrefixState> state;
  if (layout_.has_states() && !(at->end == end && at->state)) {
    state = layout_.state_of(cache);
  }
  if (path.matched < at->end) {
    at = &split(*at, path.matched - at->start());
  }
  if (path.matched < end) {
    at =
        &make_node(*at, tokens.subspan(static_cast<std::size_t>(path.matched)));
    at->rows = std::move(rows);
    nbytes_ += at->nbytes();
  }
  if (state) {
    at->state = std::move(state);
    nbytes_ += at->state->nbytes();
  }
  at->state_used = now;
  touch(tokens, now);
}

void PrefixTree::touch(std::span<const int> tokens, std::uint64_t now) {
  for (PrefixNode* node : follow(tokens).nodes) {
    node->used = now;
  }
}

std::uint64_t PrefixTree::age_of(const PrefixNode& node) {
  return node.children.empty() ? node.used : node.state_used;
}

PrefixNode* PrefixTree::oldest() {
  PrefixNode* oldest = nullptr;
  for (const auto& [_, node] : nodes_) {
    bool droppable = node->children.empty() || node->state;
    if (droppable && (oldest == nullptr || age_of(*node) < age_of(*oldest))) {
      oldest = node.get();
    }
  }
  return oldest;
}

void PrefixTree::remove(PrefixNode& node) {
  nbytes_ -= node.nbytes();
  PrefixNode& parent = *node.parent;
  parent.children.erase(node.tokens[0]);
  if (parent.evicted.size() < kRememberedEvictions) {
    parent.evicted.insert(node.tokens[0]);
  }
  nodes_.erase(&node);
}

void PrefixTree::evict(PrefixNode& node) {
  if (!node.children.empty()) {
    nbytes_ -= node.state->nbytes();
    node.state.reset();
    return;
  }
  PrefixNode* parent = node.parent;
  remove(node);
  // Rows after the last state can't be used.
  while (layout_.has_states() && parent != &root_ && parent->children.empty() &&
         !parent->state) {
    PrefixNode* next = parent->parent;
    remove(*parent);
    parent = next;
  }
}

PromptCache PrefixTree::cache_of(PrefixNode& node) const {
  std::vector<const PrefixNode*> nodes;
  for (const PrefixNode* at = &node; at != &root_; at = at->parent) {
    nodes.push_back(at);
  }
  std::ranges::reverse(nodes);
  return assembled(nodes, {node.end, node.state ? &node : nullptr});
}

std::vector<int> PrefixTree::tokens_of(const PrefixNode& node) {
  std::vector<int> tokens(static_cast<std::size_t>(node.end));
  for (const PrefixNode* at = &node; at->parent != nullptr; at = at->parent) {
    std::ranges::copy(at->tokens, tokens.begin() + at->start());
  }
  return tokens;
}

}  // namespace mlxlm
