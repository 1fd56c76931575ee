#include "kernels/cpu/topology.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>

namespace mlxlm::kernels::cpu {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxProcessor = 1 << 16;  // a longer range is no list

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Folders `name`0, `name`1, ... in `folder`.
std::vector<std::pair<int, fs::path>> numbered(const fs::path& folder,
                                               const std::string& name) {
  std::vector<std::pair<int, fs::path>> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with(name)) continue;
    const auto numbers = parse_processor_list(file.substr(name.size()));
    if (numbers.size() == 1) found.emplace_back(numbers[0], entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// The lowest of the processors listed in a file, or `otherwise`.
int lowest_in(const fs::path& path, int otherwise) {
  const auto all = parse_processor_list(first_line(path));
  return all.empty() ? otherwise : *std::min_element(all.begin(), all.end());
}

// The lowest of the processors that share the cache farthest from this one; 0
// where nothing is known of caches.
int last_cache_of(const fs::path& processor) {
  int lowest = 0;
  int last_level = 0;
  for (const auto& [_, cache] : numbered(processor / "cache", "index")) {
    const auto level = parse_processor_list(first_line(cache / "level"));
    if (level.size() != 1 || level[0] <= last_level) continue;
    last_level = level[0];
    lowest = lowest_in(cache / "shared_cpu_list", 0);
  }
  return lowest;
}

}  // namespace

std::vector<int> parse_processor_list(const std::string& text) {
  std::vector<int> all;
  std::istringstream in(text);
  int first = 0;
  while (in >> first && first >= 0) {
    int last = first;
    if (in.peek() == '-') {
      in.get();
      if (!(in >> last) || last < first || last > kMaxProcessor) break;
    }
    for (int i = first; i <= last; ++i) all.push_back(i);
    if (in.peek() != ',') break;
    in.get();
  }
  return all;
}

std::vector<Processor> read_topology(const std::vector<int>& ids,
                                     const fs::path& root) {
  std::map<int, int> node_of;
  for (const auto& [node, folder] : numbered(root / "node", "node")) {
    for (int id : parse_processor_list(first_line(folder / "cpulist"))) {
      node_of[id] = node;
    }
  }
  using Place = std::pair<int, int>;  // node, cache
  std::vector<std::pair<Place, Processor>> found;
  for (int id : ids) {
    const fs::path folder = root / "cpu" / ("cpu" + std::to_string(id));
    const int core =
        lowest_in(folder / "topology" / "thread_siblings_list", id);
    const auto node = node_of.find(id);
    found.push_back(
        {{node == node_of.end() ? 0 : node->second, last_cache_of(folder)},
         {id, core, 0}});
  }
  std::stable_sort(found.begin(), found.end(), [](auto& a, auto& b) {
    return a.first < b.first;
  });
  std::vector<Processor> all;
  for (std::size_t i = 0; i < found.size(); ++i) {
    Processor each = found[i].second;
    each.cluster = i == 0 ? 0 : all.back().cluster;
    if (i > 0 && found[i].first != found[i - 1].first) ++each.cluster;
    all.push_back(each);
  }
  return all;
}

}  // namespace mlxlm::kernels::cpu
