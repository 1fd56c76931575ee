#include "cli/logits_file.h"

#include <bit>
#include <string>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

namespace mlxlm::cli {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian");

constexpr std::size_t kAlignment = 8;

}  // namespace

LogitsFile::LogitsFile(const std::filesystem::path& path,
                       std::int64_t num_tokens,
                       std::int64_t vocabulary_size)
    : path_(path), out_(path, std::ios::binary) {
  std::int64_t num_bytes = num_tokens * vocabulary_size * 4;
  nlohmann::json header = {{"logits",
                            {{"dtype", "F32"},
                             {"shape", {num_tokens, vocabulary_size}},
                             {"data_offsets", {0, num_bytes}}}}};
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  std::uint64_t size = text.size();
  out_.write(reinterpret_cast<const char*>(&size), sizeof(size));
  out_.write(text.data(), static_cast<std::streamsize>(text.size()));
  check();
}

void LogitsFile::append(const mx::array& rows) {
  mx::array values = mx::contiguous(mx::astype(rows, mx::float32));
  values.eval();
  out_.write(reinterpret_cast<const char*>(values.data<float>()),
             static_cast<std::streamsize>(values.nbytes()));
  check();
}

void LogitsFile::close() {
  out_.close();
  check();
}

void LogitsFile::check() {
  if (!out_) {
    throw Error(ErrorKind::file, "cannot write " + path_.string());
  }
}

}  // namespace mlxlm::cli
