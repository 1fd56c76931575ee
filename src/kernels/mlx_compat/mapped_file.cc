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
                                              const mx::Dtype& dtype) const {
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
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  // A page for the word where the data begins with a page: then none of the
  // file's is touched. Else the word is in a private copy of the file's.
  const std::uint64_t own = offset % page == 0 ? page : 0;
  const std::uint64_t from =
      own > 0 ? offset : (offset - kPrefix) / page * page;
  const std::size_t length = own + (*end - from);
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  constexpr int kKind = MAP_PRIVATE | MAP_NORESERVE;
  void* map = ::mmap(nullptr, length, kAccess, kKind | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    return std::nullopt;
  }
  char* start = static_cast<char*>(map) + own;
  if (::mmap(start,
             length - own,
             kAccess,
             kKind | MAP_FIXED,
             descriptor_,
             static_cast<off_t>(from)) == MAP_FAILED) {
    ::munmap(map, length);
    return std::nullopt;
  }
  char* word = start + (offset - from) - kPrefix;
  const std::size_t num_bytes = *size;
  std::memcpy(word, &num_bytes, sizeof(num_bytes));
  mx::allocator::Data data(
      mx::allocator::Buffer(word),
      [map, length](mx::allocator::Buffer) { ::munmap(map, length); });
  return mx::array(std::move(data), shape, dtype);
}

}  // namespace mlxlm::kernels
