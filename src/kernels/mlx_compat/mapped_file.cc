#include "kernels/mlx_compat/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <string>

#include <fcntl.h>
#include <mlx/mlx.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mlxlm/error.h>

#include "core/checked.h"

namespace mlxlm::kernels {
namespace {

// The system limits the number of maps, to 65,530 on Linux.
constexpr std::uint64_t kMostRuns = 64;

// MLX's CPU allocator keeps the size of a buffer in the word before its data,
// and reads it there to decide on reuse. Only buffers of that layout can be
// made from other memory.
bool size_comes_first() {
  static const bool kYes = [] {
    if (mx::default_device() != mx::Device::cpu) {
      return false;
    }
    auto probe = mx::allocator::malloc(4096);
    auto buffer = probe.buffer();
    const auto* word = static_cast<const std::size_t*>(buffer.ptr());
    return word != nullptr && buffer.raw_ptr() == word + 1 &&
           *word == mx::allocator::allocator().size(buffer);
  }();
  return kYes;
}

}  // namespace

MappedTensors::MappedTensors(const std::filesystem::path& path)
    : descriptor_(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
  struct stat info {};
  if (descriptor_ < 0 || ::fstat(descriptor_, &info) != 0) {
    std::string reason = std::strerror(errno);
    if (descriptor_ >= 0) {
      ::close(descriptor_);
    }
    throw Error(ErrorKind::file,
                "cannot open " + path.string() + ": " + reason);
  }
  size_ = S_ISREG(info.st_mode) ? static_cast<std::uint64_t>(info.st_size) : 0;
}

MappedTensors::~MappedTensors() { ::close(descriptor_); }

std::optional<mx::array> MappedTensors::array(std::uint64_t offset,
                                              const mx::Shape& shape,
                                              const mx::Dtype& dtype,
                                              int room) const {
  constexpr std::uint64_t kPrefix = sizeof(std::size_t);
  std::optional<std::uint64_t> size = mx::size_of(dtype);
  for (int length : shape) {
    size = size && length >= 0
               ? checked_multiply(*size, static_cast<std::uint64_t>(length))
               : std::nullopt;
  }
  auto end = size ? checked_add(offset, *size) : std::nullopt;
  if (!end || *end > size_ || *size == 0 || offset < kPrefix ||
      offset % kPrefix != 0 || !size_comes_first()) {
    return std::nullopt;
  }
  if (room > 0 && (shape.size() != 4 || room > shape[2])) {
    return std::nullopt;
  }
  // Runs of the file's bytes, each followed by the room.
  const std::uint64_t num_runs =
      room > 0 ? static_cast<std::uint64_t>(shape[0]) * shape[1] : 1;
  const std::uint64_t run = *size / num_runs;
  const std::uint64_t gap =
      room > 0 ? run / shape[2] * static_cast<std::uint64_t>(room) : 0;
  const std::uint64_t page =
      static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const bool whole_pages =
      offset % page == 0 && run % page == 0 && gap % page == 0;
  if (room > 0 && (!whole_pages || num_runs > kMostRuns)) {
    return std::nullopt;
  }
  // A page for the word where the data begins with a page: then none of the
  // file's is touched. Else the word is in a private copy of the file's.
  const std::uint64_t own = offset % page == 0 ? page : 0;
  const std::uint64_t from =
      own > 0 ? offset : (offset - kPrefix) / page * page;
  const std::uint64_t lead = offset - from;
  const std::size_t length = own + lead + num_runs * (run + gap);
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  constexpr int kKind = MAP_PRIVATE | MAP_NORESERVE;
  void* map = ::mmap(nullptr, length, kAccess, kKind | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    return std::nullopt;
  }
  char* start = static_cast<char*>(map) + own;
  for (std::uint64_t i = 0; i < num_runs; ++i) {
    if (::mmap(start + i * (run + gap),
               lead + run,
               kAccess,
               kKind | MAP_FIXED,
               descriptor_,
               static_cast<off_t>(from + i * run)) == MAP_FAILED) {
      ::munmap(map, length);
      return std::nullopt;
    }
  }
  char* word = start + lead - kPrefix;
  const std::size_t num_bytes = num_runs * (run + gap);
  std::memcpy(word, &num_bytes, sizeof(num_bytes));
  mx::allocator::Data data(
      mx::allocator::Buffer(word),
      [map, length](mx::allocator::Buffer) { ::munmap(map, length); });
  mx::Shape with_room = shape;
  if (room > 0) {
    with_room[2] += room;
  }
  return mx::array(std::move(data), with_room, dtype);
}

}  // namespace mlxlm::kernels
