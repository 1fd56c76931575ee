#include "load/memory.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <utility>
#include <variant>
#include <vector>

#ifdef __APPLE__
#include <mach/mach.h>
#endif

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

namespace mx = mlx::core;
using Numbers = std::map<std::string, std::uint64_t>;

std::string first_line(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// A number alone on the first line; none for "max" or nothing.
std::optional<std::uint64_t> read_number(const std::filesystem::path& path) {
  std::istringstream in(first_line(path));
  std::uint64_t number = 0;
  return in >> number ? std::optional<std::uint64_t>(number) : std::nullopt;
}

// Lines "name 123" or "name: 123 kB".
Numbers read_numbers(const std::filesystem::path& path) {
  Numbers out;
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t number = 0;
    if (words >> name >> number) {
      if (name.back() == ':') {
        name.pop_back();
      }
      out[name] = number;
    }
  }
  return out;
}

std::uint64_t number_of(const Numbers& numbers, const std::string& name) {
  auto it = numbers.find(name);
  return it == numbers.end() ? 0 : it->second;
}

void take_least(std::optional<AvailableMemory>& least,
                std::uint64_t bytes,
                const std::string& bound_by) {
  if (!least || bytes < least->bytes) {
    least = AvailableMemory{bytes, bound_by};
  }
}

struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* inactive_files;
  const char* active_files;
};

constexpr GroupFiles kVersion1 = {"memory.limit_in_bytes",
                                  "memory.usage_in_bytes",
                                  "total_inactive_file",
                                  "total_active_file"};
constexpr GroupFiles kVersion2 = {
    "memory.max", "memory.current", "inactive_file", "active_file"};

void add_group(std::optional<AvailableMemory>& least,
               const std::filesystem::path& folder,
               const std::string& name,
               const GroupFiles& files) {
  auto limit = read_number(folder / files.limit);
  // Version 1 says "no limit" with a number near 2^63.
  if (!limit || *limit >= std::uint64_t{1} << 60) {
    return;
  }
  std::uint64_t usage = read_number(folder / files.usage).value_or(0);
  Numbers stat = read_numbers(folder / "memory.stat");
  std::uint64_t cached = number_of(stat, files.inactive_files) +
                         number_of(stat, files.active_files);
  std::uint64_t used = usage > cached ? usage - cached : 0;
  take_least(least,
             *limit > used ? *limit - used : 0,
             "the memory limit of the control group " + name);
}

// The group itself and those above it, whose limits hold as well. Inside a
// container the path may be the host's, and the group be mounted as the root.
void add_groups(std::optional<AvailableMemory>& least,
                const std::filesystem::path& mount,
                const std::string& name,
                const GroupFiles& files) {
  std::filesystem::path path = std::filesystem::path(name).relative_path();
  constexpr int kMostLevels = 64;
  for (int i = 0; i < kMostLevels && !path.empty(); ++i) {
    add_group(least, mount / path, "/" + path.string(), files);
    path = path.parent_path();
  }
  add_group(least, mount, "/", files);
}

#ifdef __APPLE__
std::optional<AvailableMemory> apple_memory() {
  vm_statistics64_data_t statistics;
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  vm_size_t page_bytes = 0;
  mach_port_t host = mach_host_self();
  if (host_page_size(host, &page_bytes) != KERN_SUCCESS ||
      host_statistics64(host,
                        HOST_VM_INFO64,
                        reinterpret_cast<host_info64_t>(&statistics),
                        &count) != KERN_SUCCESS) {
    return std::nullopt;
  }
  std::uint64_t pages = std::uint64_t{statistics.free_count} +
                        statistics.inactive_count + statistics.purgeable_count +
                        statistics.external_page_count;
  return AvailableMemory{pages * page_bytes, "the machine's memory"};
}
#endif

std::optional<AvailableMemory> machine_memory() {
#ifdef __APPLE__
  return apple_memory();
#else
  return linux_memory("/");
#endif
}

// The memory of a GPU that has its own; free_memory is from the first call.
std::optional<AvailableMemory> device_memory() {
  if (mx::default_device() != mx::Device::gpu) {
    return std::nullopt;
  }
  const auto& info = mx::device_info(mx::default_device());
  auto it = info.find("free_memory");
  if (it == info.end() || !std::holds_alternative<std::size_t>(it->second)) {
    return std::nullopt;
  }
  std::uint64_t free = std::get<std::size_t>(it->second);
  std::uint64_t used = mx::get_active_memory();
  return AvailableMemory{free > used ? free - used : 0, "the GPU's memory"};
}

std::optional<AvailableMemory> system_memory() {
  if (auto memory = device_memory()) {
    return memory;
  }
  auto memory = machine_memory();
  if (memory) {
    memory->bytes += mx::get_cache_memory();  // ours, to be used again
  }
  return memory;
}

}  // namespace

std::optional<AvailableMemory> linux_memory(const std::filesystem::path& root) {
  std::optional<AvailableMemory> least;
  Numbers meminfo = read_numbers(root / "proc/meminfo");
  if (meminfo.contains("MemAvailable")) {
    take_least(
        least, meminfo.at("MemAvailable") * 1024, "the machine's memory");
  }
  std::ifstream in(root / "proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    // "hierarchy:controllers:path"
    std::size_t first = line.find(':');
    std::size_t second =
        first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      add_groups(least, root / "sys/fs/cgroup", path, kVersion2);
    } else if (("," + controllers + ",").find(",memory,") !=
               std::string::npos) {
      add_groups(least, root / "sys/fs/cgroup/memory", path, kVersion1);
    }
  }
  return least;
}

std::optional<AvailableMemory> available_memory() {
  const char* variable = std::getenv("MLX_LM_MEMORY_LIMIT");
  if (variable == nullptr || *variable == '\0') {
    return system_memory();
  }
  std::string text = variable;
  if (text == "none") {
    return std::nullopt;
  }
  auto bytes = parse_bytes(text);
  if (!bytes) {
    throw Error(ErrorKind::argument,
                "MLX_LM_MEMORY_LIMIT must be a size such as 6G or 512MiB, or "
                "\"none\", not \"" +
                    text + "\"");
  }
  return AvailableMemory{*bytes, "MLX_LM_MEMORY_LIMIT"};
}

void require_memory(std::uint64_t bytes,
                    const std::string& what,
                    const std::string& advice) {
  auto available = available_memory();
  if (available && bytes > available->bytes) {
    throw Error(ErrorKind::memory,
                what + " needs about " + format_bytes(bytes) +
                    " of memory, and " + available->bound_by + " leaves " +
                    format_bytes(available->bytes) + "; " + advice +
                    " (MLX_LM_MEMORY_LIMIT=none skips this check)");
  }
}

void require_loading_memory(std::uint64_t bytes, const std::string& model) {
  require_memory(bytes,
                 "loading " + model,
                 "take a smaller or a more strongly quantized model");
}

std::string format_bytes(std::uint64_t bytes) {
  constexpr std::pair<double, const char*> kUnits[] = {
      {1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}};
  for (auto [size, unit] : kUnits) {
    if (static_cast<double>(bytes) >= size) {
      double number = static_cast<double>(bytes) / size;
      char text[48];
      std::snprintf(text, sizeof(text), "%.*f %s", number < 10, number, unit);
      return text;
    }
  }
  return std::to_string(bytes) + " bytes";
}

std::optional<std::uint64_t> parse_bytes(const std::string& text) {
  std::istringstream in(text);
  double number = 0;
  std::string unit;
  if (!(in >> number) || !(number >= 0)) {
    return std::nullopt;
  }
  in >> unit;
  std::string rest;
  if (in >> rest) {
    return std::nullopt;
  }
  static const std::map<std::string, double> kUnits = {{"", 1},
                                                       {"B", 1},
                                                       {"k", 1e3},
                                                       {"kB", 1e3},
                                                       {"M", 1e6},
                                                       {"MB", 1e6},
                                                       {"G", 1e9},
                                                       {"GB", 1e9},
                                                       {"T", 1e12},
                                                       {"TB", 1e12},
                                                       {"KiB", 0x1p10},
                                                       {"MiB", 0x1p20},
                                                       {"GiB", 0x1p30},
                                                       {"TiB", 0x1p40}};
  auto it = kUnits.find(unit);
  if (it == kUnits.end() || number * it->second >= 0x1p63) {
    return std::nullopt;
  }
  return static_cast<std::uint64_t>(number * it->second);
}

}  // namespace mlxlm
