#include "kernels/cpu/quantized_heads.h"

#include <bit>
#include <cstring>
#include <utility>

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

HeadRows QuantizedHeads::head(int b, int h) const {
  const auto& [data, scales, zeros] = parts_;
  return {.data = data.head(b, h),
          .stride = data.strides[2],
          .bits = bits_,
          .group_shift = std::countr_zero(static_cast<unsigned>(group_size_)),
          .scales = reinterpret_cast<const float*>(scales.head(b, h)),
          .zeros = reinterpret_cast<const float*>(zeros.head(b, h)),
          .scale_stride = scales.strides[2],
          .zero_stride = zeros.strides[2]};
}

}  // namespace mlxlm::kernels::cpu
