// What the CUDA kernels share. Plain CUDA C++ for NVRTC and nvcc, without
// headers: T is BFloat16 or Half.
#pragma once

namespace mlxlm {

using u32 = unsigned int;

struct BFloat16 {
  unsigned short bits;
};
struct Half {
  unsigned short bits;
};

__device__ inline float to_float(BFloat16 x) {
  return __uint_as_float(x.bits << 16);
}
__device__ inline float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline BFloat16 from_float(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
__device__ inline Half from_float(float x) {
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// (x & mask) | ones as the one instruction that it is.
template <u32 MASK>
__device__ u32 masked(u32 x, u32 ones) {
  u32 y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;"
      : "=r"(y)
      : "r"(x), "n"(MASK), "r"(ones));
  return y;
}

// That a byte stands for as a group's scale (e8m0).
__device__ inline float power_of_two(u32 byte) {
  return __uint_as_float(byte == 0 ? 0x00400000u : byte << 23);
}

// Two numbers of type T in one register, the first in the low half.
template <class T>
struct Pair;

template <>
struct Pair<BFloat16> {
  static __device__ float2 floats(u32 x) {
    return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
  }
  static __device__ u32 of(float a, float b) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
    return pair;
  }
  static __device__ u32 fma(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  // kNibbleOffset + the integers, 0 to 15, in the low bits of the halves:
  // 128 + q has q in the last bits of its fraction.
  static constexpr float kNibbleOffset = 128;
  static __device__ u32 of_nibbles(u32 q) {
    return masked<0x000f000f>(q, 0x43004300);
  }
  // The integers, 0 to 255: 16 * high + low is exact.
  static constexpr float kByteOffset = 0;
  static __device__ u32 of_bytes(u32 q) {
    const u32 high = fma(of_nibbles(q >> 4), 0x3f803f80u, 0xc300c300u);
    const u32 low = fma(of_nibbles(q), 0x3f803f80u, 0xc300c300u);
    return fma(high, 0x41804180u, low);
  }
  static __device__ u32 integers_of_nibbles(u32 q) {
    return fma(of_nibbles(q), 0x3f803f80u, 0xc300c300u);
  }
  static __device__ u32 integers_of_bytes(u32 q) { return of_bytes(q); }
  // Small floats, e2m1 in the low nibbles of the halves or e4m3 in their low
  // bytes: their bits where those of this type are, then exponents raised to
  // what they stand for, numbers below the least normal one too.
  static __device__ u32 of_fp4(u32 q) {
    return fma(
        (q << 12 & 0x80008000u) | (q << 6 & 0x01c001c0u), 0x7e807e80u, 0);
  }
  static __device__ u32 of_fp8(u32 q) {
    return fma((q << 8 & 0x80008000u) | (q << 4 & 0x07f007f0u), 0x7b807b80u, 0);
  }
  // d += a b: a 16 rows of 16, b 16 by 8 columns.
  static __device__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Pair<Half> {
  static __device__ float2 floats(u32 x) {
    return {to_float(Half{static_cast<unsigned short>(x)}),
            to_float(Half{static_cast<unsigned short>(x >> 16)})};
  }
  static __device__ u32 of(float a, float b) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
    return pair;
  }
  // 1024 + q has q in the last bits of its fraction.
  static constexpr float kNibbleOffset = 1024;
  static __device__ u32 of_nibbles(u32 q) {
    return masked<0x000f000f>(q, 0x64006400);
  }
  static constexpr float kByteOffset = 1024;
  static __device__ u32 of_bytes(u32 q) {
    return masked<0x00ff00ff>(q, 0x64006400);
  }
  static __device__ u32 fma(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  static __device__ u32 integers_of_nibbles(u32 q) {
    return fma(of_nibbles(q), 0x3c003c00u, 0xe400e400u);
  }
  static __device__ u32 integers_of_bytes(u32 q) {
    return fma(of_bytes(q), 0x3c003c00u, 0xe400e400u);
  }
  static __device__ u32 of_fp4(u32 q) {
    return fma(
        (q << 12 & 0x80008000u) | (q << 9 & 0x0e000e00u), 0x74007400u, 0);
  }
  static __device__ u32 of_fp8(u32 q) {
    return fma((q << 8 & 0x80008000u) | (q << 7 & 0x3f803f80u), 0x5c005c00u, 0);
  }
  static __device__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// One quantized matrix [N, K]; of floats, scales are bytes, and there are no
// zeros.
template <class T>
struct QuantizedMatrix {
  const u32* words;
  const T* scales;
  const T* zeros;
  const T* bias;  // [N] or null
  int num_rows;
};

// The sum over `width` neighbouring lanes, in all of them.
template <int width>
__device__ float lane_sum(float x) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, step);
  }
  return x;
}

template <int width>
__device__ float lane_max(float x) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  return x;
}

}  // namespace mlxlm
