// Keys or values of a quantized cache.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include <mlx/array.h>

#include "kernels/cpu/isa.h"

namespace mlxlm::kernels::cpu {

namespace mx = mlx::core;

// data [B, H, T, D * bits / 32] with float32 scales and zeros [B, H, T, D /
// group_size], lying in any way. The arrays must outlive it.
class QuantizedHeads {
 public:
  QuantizedHeads(const mx::array& data,
                 const mx::array& scales,
                 const mx::array& zeros,
                 int group_size,
                 int bits);

  int num_heads() const { return parts_[0].array->shape(1); }
  int num_rows() const { return parts_[0].array->shape(2); }
  int row_size() const { return parts_[1].array->shape(3) * group_size_; }

  HeadRows head(int b, int h) const;

 private:
  struct Part {
    const mx::array* array;
    std::vector<std::byte> copy;  // where the elements of a row lie apart
    const std::byte* data;
    std::array<std::ptrdiff_t, 3> strides;  // in elements, of four bytes

    explicit Part(const mx::array& x);
    Part(Part&&) = default;  // not copied: `data` may be the copy's
    const std::byte* head(int b, int h) const {
      return data + 4 * (b * strides[0] + h * strides[1]);
    }
  };

  std::array<Part, 3> parts_;
  int group_size_;
  int bits_;
};

}  // namespace mlxlm::kernels::cpu
