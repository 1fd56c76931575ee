// Weights in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/weight_memory.h"
#include "kernels/seam.h"

namespace mlxlm::kernels::cpu {

// One matrix, or a stack of experts, in panels; owns its memory, which is MLX's
// and counted by it.
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

  // Whether restore() gives back what was packed: floats of 8 bits, which
  // become 16-bit ones, it doesn't.
  bool is_restorable() const { return restorable_; }
  // Sets weight, scales and zeros of `linear` (of floats of 4 bits the weight)
  // to arrays that are made of the packed form when somebody evaluates them.
  static void restore(std::shared_ptr<const PackedLinear> packed,
                      Linear& linear);

  // Row `row` of the (first) matrix in float32.
  void read_row(int row, float* out) const;

 private:
  std::optional<WeightMemory> storage_;
  std::size_t num_bytes_ = 0;
  bool restorable_ = false;
  std::vector<PanelMatrix> matrices_;
  std::vector<float> bias_;
};

// Packs `linear` and lets go of its arrays, as restore() has it. Leaves adapted
// layers and those that can't be restored alone.
void prepare(Linear& linear);

// The row of a token, as mx::take has it: negative ones count from the end. A
// stray one must not become a stray read and gives zeros.
void read_token(const PackedLinear& table, int token, float* out);

// Rows of a packed table: tokens [...] -> [..., K] float32.
mx::array embed(const Linear& table, const mx::array& tokens);

// The packed form of `linear`, made at the first call and kept in it.
std::shared_ptr<const PackedLinear> packed(const Linear& linear);

}  // namespace mlxlm::kernels::cpu
