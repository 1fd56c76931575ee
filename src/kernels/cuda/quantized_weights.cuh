// How quantized weights become numbers of type T for tensor cores.
#pragma once

#include "common.cuh"

namespace mlxlm {

// A group of columns, affine or of floats. Groups of 16 are taken in pairs:
// their scales, which lie side by side, are applied to the weights, whose
// products with them have six bits and so are exact. Others' are for a group's
// sum.
template <class T, int BITS, int GROUP, bool FLOATS>
struct GroupWeights {
  static constexpr bool kPaired = GROUP == 16;
  static constexpr int kGroup = kPaired ? 32 : GROUP;
  static constexpr float kOffset =
      BITS == 4 ? Pair<T>::kNibbleOffset : Pair<T>::kByteOffset;
  static_assert(!kPaired || FLOATS);

  // Scale and zero, or bytes: the scale, or scales of two groups of 16.
  static __device__ u32 load_scale(const QuantizedMatrix<T>& w, size_t at) {
    const auto* scales = reinterpret_cast<const unsigned short*>(w.scales);
    if constexpr (FLOATS && !kPaired) {
      return reinterpret_cast<const unsigned char*>(w.scales)[at];
    } else if constexpr (FLOATS) {
      return scales[at];
    } else {
      const u32 scale = scales[at];
      const u32 zero = reinterpret_cast<const unsigned short*>(w.zeros)[at];
      return scale | zero << 16;
    }
  }

  // A group's factor of the sum of products, and of the sum of x.
  static __device__ float2 factors_of(u32 scale) {
    if constexpr (kPaired) {
      return {1, 0};
    } else if constexpr (FLOATS) {
      return {power_of_two(scale), 0};
    } else {
      float2 factors = Pair<T>::floats(scale);
      factors.y -= kOffset * factors.x;
      return factors;
    }
  }

  // This lane's factor of weights, twice.
  static __device__ u32 weight_factor(u32 scale) {
    if constexpr (!kPaired) return 0;
    const u32 half = threadIdx.x % 4 / 2;
    return Pair<T>::of_fp8((scale >> half * 8 & 0xff) * 0x10001u);
  }

  // Two weights of a word, 16 bits apart, that begin `shift` bits in.
  static __device__ u32 numbers(u32 word, int shift, u32 factor) {
    const u32 q = word >> shift;
    if constexpr (!FLOATS) {
      return BITS == 4 ? Pair<T>::of_nibbles(q) : Pair<T>::of_bytes(q);
    } else {
      const u32 pair = BITS == 4 ? Pair<T>::of_fp4(q) : Pair<T>::of_fp8(q);
      return kPaired ? Pair<T>::fma(pair, factor, 0) : pair;
    }
  }
};

}  // namespace mlxlm
