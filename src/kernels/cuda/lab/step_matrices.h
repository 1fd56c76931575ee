// Random matrices of the step kernel's lab, on the GPU and for the check on the
// host, and what the check does with them.
#pragma once

#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

#include "lab.h"
#include "step.cuh"

using namespace mlxlm;
#ifndef WEIGHT_BITS
#define WEIGHT_BITS 4  // 16: dense
#endif
constexpr int kGroup = 64, kBits = WEIGHT_BITS;

std::mt19937 rng(3);
template <class X>
X* upload(const std::vector<X>& v) {
  X* p;
  CHECK(cudaMalloc(&p, std::max<size_t>(16, v.size() * sizeof(X))));
  CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(X), cudaMemcpyHostToDevice));
  return p;
}
template <class X>
X* room(size_t count) {
  X* p;
  CHECK(cudaMalloc(&p, count * sizeof(X)));
  CHECK(cudaMemset(p, 0, count * sizeof(X)));
  return p;
}
std::vector<T> values(size_t n, float scale, float around = 0) {
  std::normal_distribution<float> d;
  std::vector<T> v(n);
  for (auto& x : v) x = rounded(around + d(rng) * scale);
  return v;
}

__global__ void fill_words(u32* p, size_t n, u32 seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n;
       i += size_t(gridDim.x) * blockDim.x) {
    u32 x = u32(i) * 2654435761u + seed;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13, x *= 3266489917u;
    p[i] = x ^ x >> 16;
  }
}
__global__ void fill_values(T* p, size_t n, float around, float spread, u32 s) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n;
       i += size_t(gridDim.x) * blockDim.x) {
    u32 x = u32(i) * 2654435761u + s;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    p[i] = rounded(around + spread * (float(x & 0xffff) / 65536 - .5f));
  }
}

struct Matrix {
  StepMatrix<T> device;
  int columns;
  std::vector<u32> words;  // on the host, for the check
  std::vector<T> scales, zeros;
};

Matrix matrix(int rows, int columns, bool keep) {
  Matrix m{{}, columns, {}, {}, {}};
  const size_t words = size_t(rows) * columns * kBits / 32;
  const size_t groups = size_t(rows) * columns / kGroup;
  u32* w = room<u32>(words);
  if (kBits == 16) {
    const float spread = 3.5f / std::sqrt(float(columns));
    fill_values<<<1024, 256>>>(
        reinterpret_cast<T*>(w), words * 2, 0, spread, rng());
    m.device = {w, nullptr, nullptr, nullptr, rows, 0};
    if (keep) {
      m.words.resize(words);
      CHECK(cudaMemcpy(m.words.data(), w, words * 4, cudaMemcpyDeviceToHost));
    }
    return m;
  }
  T* s = room<T>(groups);
  T* z = room<T>(groups);
  const float around = 0.3f / std::sqrt(float(columns));
  fill_words<<<1024, 256>>>(w, words, rng());
  fill_values<<<1024, 256>>>(s, groups, around, around, rng());
  fill_values<<<1024, 256>>>(z, groups, -7.5f * around, around, rng());
  m.device = {w, s, z, nullptr, rows, 0};
  if (keep) {
    m.words.resize(words), m.scales.resize(groups), m.zeros.resize(groups);
    CHECK(cudaMemcpy(m.words.data(), w, words * 4, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(m.scales.data(), s, groups * 2, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(m.zeros.data(), z, groups * 2, cudaMemcpyDeviceToHost));
  }
  return m;
}

double at(const Matrix& m, size_t r, int c) {
  const u32 w = m.words[(r * m.columns + c) * kBits / 32];
  const u32 q = (w >> (c * kBits % 32)) & ((1u << kBits) - 1);
  if (kBits == 16) return number(T{static_cast<unsigned short>(q)});
  const size_t g = r * (m.columns / kGroup) + c / kGroup;
  return double(number(m.scales[g])) * q + number(m.zeros[g]);
}
// Rows [first, first + count), all of them if there is no count.
std::vector<double> product(const Matrix& m,
                            const std::vector<double>& x,
                            size_t first = 0,
                            int count = 0) {
  std::vector<double> y(count > 0 ? count : m.device.num_rows);
  for (size_t r = 0; r < y.size(); ++r)
    for (int c = 0; c < m.columns; ++c) y[r] += at(m, first + r, c) * x[c];
  return y;
}
std::vector<double> normed(const std::vector<double>& x,
                           const std::vector<T>& w) {
  double s = 0;
  for (double v : x) s += v * v;
  const double f = 1 / std::sqrt(s / x.size() + 1e-5);
  auto y = x;
  for (size_t i = 0; i < x.size(); ++i) y[i] *= f * number(w[i]);
  return y;
}
