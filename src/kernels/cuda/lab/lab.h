// What the labs share: bfloat16 on the host and the device, calls that must
// succeed, and times.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

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

#define CHECK(x)                                                       \
  do {                                                                 \
    cudaError_t e = (x);                                               \
    if (e != cudaSuccess) {                                            \
      printf("%s:%d %s\n", __FILE__, __LINE__, cudaGetErrorString(e)); \
      exit(1);                                                         \
    }                                                                  \
  } while (0)

// Microseconds of one call: a captured graph of many, so that launches don't
// count.
inline double time_us(const std::function<void(cudaStream_t, int)>& launch,
                      int copies) {
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  const int calls = std::max(copies, 40);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < calls; ++i) launch(stream, i % copies);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b;
  cudaEventCreate(&a), cudaEventCreate(&b);
  std::vector<double> times;
  for (int i = 0; i < 7; ++i) {
    CHECK(cudaEventRecord(a, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(b, stream));
    CHECK(cudaStreamSynchronize(stream));
    float ms;
    cudaEventElapsedTime(&ms, a, b);
    times.push_back(ms * 1e3 / calls);
  }
  std::sort(times.begin(), times.end());
  return times[3];
}
