#include "core/file.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

[[noreturn]] void fail(const std::string& what,
                       const std::filesystem::path& path,
                       int error_number) {
  throw Error(ErrorKind::file,
              what + " " + path.string() + ": " + std::strerror(error_number));
}

// Not to wait for a writer where a pipe has the name of a file.
constexpr int kRead = O_RDONLY | O_NONBLOCK;

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, int mode = 0)
      : value_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {}
  ~Descriptor() {
    if (value_ >= 0) {
      ::close(value_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

std::uint64_t regular_file_size(int descriptor,
                                const std::filesystem::path& path) {
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) {
    fail("cannot read", path, errno);
  }
  if (!S_ISREG(info.st_mode)) {
    throw Error(ErrorKind::file,
                "cannot read " + path.string() + ": not a regular file");
  }
  return static_cast<std::uint64_t>(info.st_size);
}

void sync(const std::filesystem::path& path, int flags) {
  Descriptor file(path, flags);
  if (file.get() < 0 || ::fsync(file.get()) != 0) {
    fail("cannot sync", path, errno);
  }
}

// Removes the file unless told that it was moved away.
class TemporaryFile {
 public:
  // Created here and empty, so that two writers never share one.
  explicit TemporaryFile(const std::filesystem::path& target) {
    std::string name = target.string() + ".XXXXXX.tmp";
    int descriptor = ::mkostemps(name.data(), 4, O_CLOEXEC);
    if (descriptor < 0) {
      fail("cannot write beside", target, errno);
    }
    mode_t mask = ::umask(0);
    ::umask(mask);
    ::fchmod(descriptor, 0666 & ~mask);
    ::close(descriptor);
    path_ = name;
  }
  ~TemporaryFile() {
    if (!path_.empty()) {
      ::unlink(path_.c_str());
    }
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::filesystem::path& path() const { return path_; }
  void moved() { path_.clear(); }

 private:
  std::filesystem::path path_;
};

}  // namespace

bool file_exists(const std::filesystem::path& path) {
  std::error_code ignored;  // without it, a loop of links would throw
  return std::filesystem::exists(path, ignored);
}

std::string read_file(const std::filesystem::path& path,
                      std::uint64_t max_bytes) {
  Descriptor file(path, kRead);
  if (file.get() < 0) {
    fail("cannot open", path, errno);
  }
  std::uint64_t size = regular_file_size(file.get(), path);
  if (size > max_bytes) {
    throw Error(ErrorKind::file,
                path.string() + " has " + std::to_string(size) +
                    " bytes, more than the " + std::to_string(max_bytes) +
                    " that such a file may have");
  }
  std::string content(size, '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    ssize_t count =
        ::read(file.get(), content.data() + done, content.size() - done);
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail("cannot read", path, errno);
    }
    if (count == 0) {
      break;  // it shrank meanwhile
    }
    done += static_cast<std::size_t>(count);
  }
  content.resize(done);
  return content;
}

void write_file_atomically(
    const std::filesystem::path& path,
    const std::function<void(const std::filesystem::path&)>& write) {
  TemporaryFile temporary(path);
  write(temporary.path());
  sync(temporary.path(), O_RDONLY);
  if (::rename(temporary.path().c_str(), path.c_str()) != 0) {
    fail("cannot write", path, errno);
  }
  temporary.moved();
  auto folder = path.parent_path();
  sync(folder.empty() ? std::filesystem::path(".") : folder,
       O_RDONLY | O_DIRECTORY);
}

void write_file_atomically(const std::filesystem::path& path,
                           std::string_view content) {
  write_file_atomically(path, [&](const std::filesystem::path& temporary) {
    std::ofstream out(temporary, std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    out.close();
    if (!out) {
      fail("cannot write", temporary, errno);
    }
  });
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  Descriptor file(path, kRead);
  if (file.get() < 0) {
    fail("cannot open", path, errno);
  }
  size_ = regular_file_size(file.get(), path);
  if (size_ == 0) {
    return;
  }
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) {
    fail("cannot map", path, errno);
  }
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

void MappedFile::let_go_of(std::span<const std::byte> part) const {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto first = static_cast<std::size_t>(part.data() - data_);
  const std::size_t begin = (first + page - 1) / page * page;
  const std::size_t end = (first + part.size()) / page * page;
  if (begin < end) {
    ::madvise(
        const_cast<std::byte*>(data_ + begin), end - begin, MADV_DONTNEED);
  }
}

}  // namespace mlxlm
