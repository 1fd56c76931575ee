// Memory for packed weights.
#pragma once

#include <cstddef>
#include <memory>

namespace mlxlm::kernels::cpu {

// A piece of memory for as long as the object or a copy of it lives. Pieces lie
// side by side in blocks, in the order in which they are asked for, so that a
// model's small matrices share large pages: a token reads all of them, and with
// pages of 4 KiB a fifth of that time goes to looking up where they are. The
// blocks are MLX's memory and counted by it.
class WeightMemory {
 public:
  // Not initialized.
  explicit WeightMemory(std::size_t size_bytes);

  std::byte* data() const { return data_; }

 private:
  struct Block;
  std::shared_ptr<Block> block_;
  std::byte* data_ = nullptr;
};

}  // namespace mlxlm::kernels::cpu
