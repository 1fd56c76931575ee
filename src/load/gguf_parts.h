// The GGUF files that make one model: one, or the parts of a split one.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "load/gguf_file.h"

namespace mlxlm {

class GgufParts {
 public:
  // A tensor and the part it is in.
  struct Entry {
    const GgufFile* file;
    const GgufTensor* tensor;
  };

  // `path`: the file, or any part NAME-00001-of-00003.gguf. Throws Error{file}
  // for missing parts and Error{format} for parts that don't belong together.
  explicit GgufParts(const std::filesystem::path& path);

  // The first part, which has the metadata.
  const GgufFile& first() const { return files_.front(); }
  const GgufMetadata& metadata() const { return first().metadata(); }

  std::vector<Entry> tensors() const;
  // With no file and tensor if no part has it.
  Entry find_tensor(std::string_view name) const;

 private:
  void check_parts(std::size_t count) const;

  std::vector<GgufFile> files_;
};

}  // namespace mlxlm
