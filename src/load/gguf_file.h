// GGUF files: header, metadata and the tensors' places, all checked against
// the file before anything is used.
//
//   GgufFile file("model.gguf");
//   std::string_view model =
//       file.metadata().required_string("tokenizer.ggml.model");
//   auto tokens = file.metadata().required_strings("tokenizer.ggml.tokens");
//   if (auto scores = file.metadata().floats("tokenizer.ggml.scores")) { ... }
//
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions
// 2 and 3, little-endian. Nothing is copied out of the mapped file until asked
// for, so memory stays proportional to the file's size. Views live as long as
// the GgufFile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/file.h"
#include "load/gguf_metadata.h"
#include "load/gguf_types.h"

namespace mlxlm {

struct GgufTensor {
  std::string_view name;
  const GgufType* type;
  // Outermost dimension first, as in MLX (the file has them reversed).
  std::vector<int> shape;
  std::span<const std::byte> data;
};

class GgufFile {
 public:
  // Throws Error{file} if it can't be read and Error{format} if it breaks the
  // format.
  explicit GgufFile(const std::filesystem::path& path);

  const std::string& path() const { return path_; }
  std::uint32_t version() const { return version_; }
  const GgufMetadata& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;

  // The tensor has been read: its pages needn't stay in memory.
  void let_go_of(const GgufTensor& tensor) const {
    file_->let_go_of(tensor.data);
  }

  // An Error{format} that names the file.
  Error error(const std::string& what) const { return gguf_error(path_, what); }

 private:
  class Cursor;

  // A tensor before the place of the data is known.
  struct TensorInfo {
    GgufTensor tensor;
    std::uint64_t offset;
    std::uint64_t bytes;
  };

  void read_header(Cursor& cursor);
  void read_metadata(Cursor& cursor, std::uint64_t count);
  GgufValue read_value(Cursor& cursor, std::string_view key) const;
  void read_tensors(Cursor& cursor, std::uint64_t count);
  TensorInfo read_tensor(Cursor& cursor, std::uint64_t index) const;
  // Returns the number of elements.
  std::uint64_t read_shape(Cursor& cursor, GgufTensor& tensor) const;
  std::uint64_t alignment_bytes() const;
  void check_overlaps() const;

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  std::uint32_t version_ = 0;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> tensor_index_;
};

}  // namespace mlxlm
