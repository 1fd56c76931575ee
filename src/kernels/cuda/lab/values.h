// bfloat16 on the host and the device.
#pragma once

#include <cstring>

#include "common.cuh"

using T = mlxlm::BFloat16;

// To the nearest, of halves to the even one.
__host__ __device__ inline T rounded(float x) {
  unsigned int bits;
  memcpy(&bits, &x, sizeof bits);
  return {
      static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
__host__ __device__ inline float number(T x) {
  const unsigned int bits = x.bits << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}
