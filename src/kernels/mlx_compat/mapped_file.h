// Arrays whose memory is a map of a file: nothing is read before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include <mlx/array.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

class MappedTensors {
 public:
  // Throws Error{file}.
  explicit MappedTensors(const std::filesystem::path& path);
  ~MappedTensors();
  MappedTensors(const MappedTensors&) = delete;
  MappedTensors& operator=(const MappedTensors&) = delete;

  // The bytes from `offset` on as an array, or none where that can't be mapped:
  // on devices with memory of their own, at a place that isn't a multiple of
  // eight, or outside the file.
  // The map is private and writable, so that MLX may reuse the buffer: a page
  // that it writes to becomes a copy in memory, the file never changes. A file
  // that another program shortens meanwhile ends the process with SIGBUS;
  // write_file_atomically() never does that.
  // With `room`, at most T, for an array [B, H, T, D]: [B, H, T + room, D],
  // zeros behind each head's rows, which cost no memory before they are
  // written. Only where a head's rows, and the room, are whole pages.
  std::optional<mx::array> array(std::uint64_t offset,
                                 const mx::Shape& shape,
                                 const mx::Dtype& dtype,
                                 int room = 0) const;

 private:
  int descriptor_;
  std::uint64_t size_ = 0;
};

}  // namespace mlxlm::kernels
