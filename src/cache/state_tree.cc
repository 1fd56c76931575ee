#include "cache/state_tree.h"

#include <algorithm>
#include <charconv>
#include <span>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

using Leaf = std::pair<std::string, CacheState>;
using Path = std::vector<int>;
using PathLeaf = std::pair<Path, CacheState>;

void flatten(const CacheState& state,
             const std::string& name,
             std::vector<Leaf>& out) {
  if (auto* list = std::get_if<CacheState::List>(&state.value)) {
    for (std::size_t i = 0; i < list->size(); ++i) {
      flatten((*list)[i], name + "." + std::to_string(i), out);
    }
  } else {
    out.emplace_back(name, state);
  }
}

[[noreturn]] void fail(const std::string& what) {
  throw Error(ErrorKind::format, "unusable prompt cache: " + what);
}

Path parse_path(const std::string& name) {
  Path path;
  const char* at = name.data();
  const char* end = at + name.size();
  while (true) {
    int index = 0;
    auto [next, error] = std::from_chars(at, end, index);
    bool canonical = next != at && (*at != '0' || next == at + 1);
    if (error != std::errc() || index < 0 || !canonical ||
        path.size() == kMaxStateDepth) {
      break;
    }
    path.push_back(index);
    if (next == end) {
      return path;
    }
    if (*next != '.') {
      break;
    }
    at = next + 1;
  }
  fail("'" + name.substr(0, 64) + "' is not the name of a part of its state");
}

std::string joined(const Path& path) {
  std::string name;
  for (int index : path) {
    name += (name.empty() ? "" : ".") + std::to_string(index);
  }
  return name;
}

// Builds what lies below `depth` from the sorted leaves that share a prefix.
CacheState build(std::span<PathLeaf> leaves, std::size_t depth) {
  if (leaves.front().first.size() == depth) {
    if (leaves.size() > 1) {
      fail("'" + joined(leaves.front().first) +
           "' is a value and a list, or there twice");
    }
    return std::move(leaves.front().second);
  }
  CacheState::List list;
  for (std::size_t from = 0; from < leaves.size();) {
    int index = leaves[from].first[depth];
    std::size_t to = from;
    while (to < leaves.size() && leaves[to].first[depth] == index) {
      ++to;
    }
    if (static_cast<std::size_t>(index) != list.size()) {
      fail("an item before '" + joined(leaves[from].first) + "' is missing");
    }
    list.push_back(build(leaves.subspan(from, to - from), depth + 1));
    from = to;
  }
  return {std::move(list)};
}

}  // namespace

std::vector<Leaf> flatten_states(const std::vector<CacheState>& states) {
  std::vector<Leaf> leaves;
  for (std::size_t i = 0; i < states.size(); ++i) {
    flatten(states[i], std::to_string(i), leaves);
  }
  return leaves;
}

std::vector<CacheState> unflatten_states(std::vector<Leaf> leaves) {
  if (leaves.empty()) {
    return {};
  }
  std::vector<PathLeaf> paths;
  for (auto& [name, state] : leaves) {
    paths.emplace_back(parse_path(name), std::move(state));
  }
  std::ranges::sort(paths, {}, &PathLeaf::first);
  return std::get<CacheState::List>(build(paths, 0).value);
}

}  // namespace mlxlm
