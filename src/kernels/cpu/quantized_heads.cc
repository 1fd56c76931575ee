#include "kernels/cpu/quantized_heads.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/isa.h"

namespace mlxlm::kernels::cpu {

QuantizedHeads::Part::Part(const mx::array& x)
    : array(&x), data(x.data<std::byte>()) {
  if (x.shape(3) == 1 || x.strides(3) == 1) {
    strides = {x.strides(0), x.strides(1), x.strides(2)};
    return;
  }
  copy.resize(x.nbytes());
  const std::byte* from = std::exchange(data, copy.data());
  std::byte* to = copy.data();
  for (int b = 0; b < x.shape(0); ++b) {
    for (int h = 0; h < x.shape(1); ++h) {
      for (int i = 0; i < x.shape(2); ++i) {
        for (int c = 0; c < x.shape(3); ++c, to += 4) {
          std::memcpy(to,
                      from + 4 * (b * x.strides(0) + h * x.strides(1) +
                                  i * x.strides(2) + c * x.strides(3)),
                      4);
        }
      }
    }
  }
  strides[2] = x.shape(3);
  strides[1] = strides[2] * x.shape(2);
  strides[0] = strides[1] * x.shape(1);
}

QuantizedHeads::QuantizedHeads(const mx::array& data,
                               const mx::array& scales,
                               const mx::array& zeros,
                               int group_size,
                               int bits)
    : parts_{Part(data), Part(scales), Part(zeros)},
      group_size_(group_size),
      bits_(bits) {}

void QuantizedHeads::read(
    int batch_row, int head, int first, int count, float* out) const {
  const int size = row_size();
  for (int i = first; i < first + count; ++i, out += size) {
    isa_kernels().dequantize(parts_[0].row<std::uint32_t>(batch_row, head, i),
                             parts_[1].row<float>(batch_row, head, i),
                             parts_[2].row<float>(batch_row, head, i),
                             size,
                             group_size_,
                             bits_,
                             out);
  }
}

}  // namespace mlxlm::kernels::cpu
