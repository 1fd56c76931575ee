// How much memory there is, and a refusal before it would run out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace mlxlm {

// Bytes that may still be used, and what sets the bound ("the machine",
// "the control group /x", "MLX_LM_MEMORY_LIMIT").
struct AvailableMemory {
  std::uint64_t bytes = 0;
  std::string bound_by;
};

// None if the system doesn't say or MLX_LM_MEMORY_LIMIT is "none". That
// variable ("6000000000", "6G", "6GiB") replaces what was found.
std::optional<AvailableMemory> available_memory();

// Throws Error{memory} if more is needed than there is: "WHAT needs about 12
// GB, and ... ADVICE".
void require_memory(std::uint64_t bytes,
                    const std::string& what,
                    const std::string& advice);

// The same for a model's weights.
void require_loading_memory(std::uint64_t bytes, const std::string& model);

// "12.3 GB" (1e9), "4.5 MB".
std::string format_bytes(std::uint64_t bytes);

// "6G" (1e9), "512MiB", "1000000"; none if it isn't a size.
std::optional<std::uint64_t> parse_bytes(const std::string& text);

// Linux: the least of /proc/meminfo and of the control groups (version 1 and
// 2) of /proc/self/cgroup, as found under `root`. Memory that holds only
// cached files counts as available.
std::optional<AvailableMemory> linux_memory(const std::filesystem::path& root);

}  // namespace mlxlm
