// Weights in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/seam.h"

namespace mlxlm::kernels::cpu {

// One matrix, or a stack of experts, in panels; owns its memory.
class PackedLinear {
 public:
  // Packs every format that a Linear can have. Evaluates its arrays.
  static std::shared_ptr<const PackedLinear> make(const Linear& linear);

  const PanelMatrix& matrix(int expert = 0) const { return matrices_[expert]; }
  int num_experts() const { return static_cast<int>(matrices_.size()); }
  // [num_rows] of one expert, or null.
  const float* bias(int expert = 0) const {
    return bias_.empty() ? nullptr
                         : bias_.data() + static_cast<std::size_t>(expert) *
                                              matrices_[0].num_rows;
  }
  std::size_t nbytes() const { return num_bytes_; }

 private:
  struct FreeAligned {
    void operator()(std::byte* p) const;
  };

  std::unique_ptr<std::byte, FreeAligned> storage_;
  std::size_t num_bytes_ = 0;
  std::vector<PanelMatrix> matrices_;
  std::vector<float> bias_;
};

// The packed form of `linear`, made at the first call and kept in it.
std::shared_ptr<const PackedLinear> packed(const Linear& linear);

}  // namespace mlxlm::kernels::cpu
