#include "load/safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include <fcntl.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <mlxlm/error.h>

#include "core/json.h"

namespace mlxlm {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian");

constexpr std::size_t kPage = 4096;

const char* name_of(const mx::Dtype& dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::bool_:
      return "BOOL";
    case mx::Dtype::Val::uint8:
      return "U8";
    case mx::Dtype::Val::int8:
      return "I8";
    case mx::Dtype::Val::uint16:
      return "U16";
    case mx::Dtype::Val::int16:
      return "I16";
    case mx::Dtype::Val::uint32:
      return "U32";
    case mx::Dtype::Val::int32:
      return "I32";
    case mx::Dtype::Val::uint64:
      return "U64";
    case mx::Dtype::Val::int64:
      return "I64";
    case mx::Dtype::Val::float16:
      return "F16";
    case mx::Dtype::Val::bfloat16:
      return "BF16";
    case mx::Dtype::Val::float32:
      return "F32";
    case mx::Dtype::Val::float64:
      return "F64";
    case mx::Dtype::Val::complex64:
      return "C64";
  }
  return nullptr;
}

class Output {
 public:
  explicit Output(const std::filesystem::path& path)
      : path_(path),
        descriptor_(::open(
            path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0) {
      fail();
    }
  }
  ~Output() {
    if (descriptor_ >= 0) {
      ::close(descriptor_);
    }
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(const char* data, std::size_t size) {
    while (size > 0) {
      ssize_t count =
          ::write(descriptor_, data, std::min(size, std::size_t{1} << 30));
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count <= 0) {
        fail();
      }
      data += count;
      size -= static_cast<std::size_t>(count);
    }
  }

  void close() {
    if (::close(std::exchange(descriptor_, -1)) != 0) {
      fail();
    }
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(ErrorKind::file,
                "cannot write " + path_.string() + ": " + std::strerror(errno));
  }

  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace

void write_safetensors(const std::filesystem::path& path,
                       std::vector<std::pair<std::string, mx::array>> tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Whole pages first, then from large numbers to small ones.
  auto rank = [](const std::pair<std::string, mx::array>& entry) {
    bool whole_pages = entry.second.nbytes() % kPage == 0;
    return std::pair(!whole_pages, kPage - entry.second.itemsize());
  };
  std::ranges::stable_sort(tensors, {}, rank);
  auto header = nlohmann::json::object();
  header["__metadata__"] = metadata;
  std::uint64_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    const char* dtype = name_of(tensor.dtype());
    if (dtype == nullptr) {
      throw Error(ErrorKind::unsupported,
                  "tensor " + name + " has a dtype that files can't hold");
    }
    std::uint64_t begin = end;
    end += tensor.nbytes();
    header[name] = {
        {"dtype", dtype},
        {"shape",
         std::vector<int>(tensor.shape().begin(), tensor.shape().end())},
        {"data_offsets", {begin, end}}};
  }
  std::string text = dumped(header);
  std::uint64_t size = text.size() + sizeof(std::uint64_t);
  size = (size + kPage - 1) / kPage * kPage - sizeof(size);
  text.resize(size, ' ');
  Output out(path);
  out.write(reinterpret_cast<const char*>(&size), sizeof(size));
  out.write(text.data(), text.size());
  for (const auto& [name, tensor] : tensors) {
    mx::array values = mx::contiguous(tensor);
    values.eval();
    out.write(values.data<char>(), values.nbytes());
  }
  out.close();
}

}  // namespace mlxlm
