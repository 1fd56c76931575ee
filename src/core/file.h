// Files: read whole, mapped, and written so that nothing half-written remains.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace mlxlm {

// True if there is something at `path` that can be reached.
bool file_exists(const std::filesystem::path& path);

// The content of a file of at most `max_bytes`. Throws Error{file}.
std::string read_file(const std::filesystem::path& path,
                      std::uint64_t max_bytes = std::uint64_t{1} << 30);

// Writes through a temporary file beside `path`: `write` fills it, then it is
// synced and renamed, so that `path` holds the old or the new content, never a
// part. Throws Error{file}; the temporary file is removed.
void write_file_atomically(
    const std::filesystem::path& path,
    const std::function<void(const std::filesystem::path& temporary)>& write);

void write_file_atomically(const std::filesystem::path& path,
                           std::string_view content);

// A read-only memory map.
class MappedFile {
 public:
  // Throws Error{file}.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Takes the pages that hold nothing but `part` of bytes() out of this
  // process's memory; whoever reads them later gets them from the file.
  void let_go_of(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace mlxlm
