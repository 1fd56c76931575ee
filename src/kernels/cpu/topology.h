// Which processors share a core, a last-level cache, a memory node.
#pragma once

#include <filesystem>
#include <vector>

namespace mlxlm::kernels::cpu {

struct Processor {
  int id = 0;
  int core = 0;     // the lowest processor of the same core
  int cluster = 0;  // from 0 on, those of a node side by side: processors that
                    // share both a memory node and a last-level cache
};

// What Linux says in `root` of the processors with these numbers, cluster by
// cluster. Without files there, each is a core, and all are one cluster.
std::vector<Processor> read_topology(
    const std::vector<int>& ids,
    const std::filesystem::path& root = "/sys/devices/system");

// "0-2,5" -> 0, 1, 2, 5; what isn't a list of numbers ends it.
std::vector<int> parse_processor_list(const std::string& text);

}  // namespace mlxlm::kernels::cpu
