// Checks and times products of many rows over the shapes of an 8B llama.
//   nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -I .. wide_lab.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "lab.h"
#include "wide_output.cuh"

using namespace mlxlm;

constexpr int kBlocks = 132;

struct Silu {
  __device__ float operator()(float x) const { return x / (1 + __expf(-x)); }
};

template <int BITS, int N, int ROWS>
__global__ void arrange_kernel(
    const T* x, int rows, int size, const T* norm, T* arranged) {
  WideInput<T, BITS, N, ROWS>::run(x, rows, size, norm, 1e-5f, arranged);
}
struct Outputs {
  T* y;
  const T* residual;
  float scale;
};
template <int BITS, int GROUP, int N, bool GATED>
struct Kind;
template <int BITS, int GROUP, int N>
struct Kind<BITS, GROUP, N, false> {
  using Linear = WideLinear<T, BITS, GROUP, N>;
  static __device__ auto end(const WideProblem<T>& p, const Outputs& o) {
    return typename Linear::End{p, {o.y, o.y, o.y}, o.residual, o.scale};
  }
};
template <int BITS, int GROUP, int N>
struct Kind<BITS, GROUP, N, true> {
  using Gated = WideGated<T, BITS, GROUP, N, Silu>;
  static __device__ auto end(const WideProblem<T>& p, const Outputs& o) {
    return typename Gated::End{p, o.y, Silu()};
  }
};
template <int BITS, int GROUP, int N, bool GATED>
__global__ void __launch_bounds__(kWideBlockThreads, 1)
    wide_kernel(const __grid_constant__ WideProblem<T> p, Outputs o) {
  wide_matmul<WideMatmul<T, BITS, GROUP, N, GATED>>(
      p, Kind<BITS, GROUP, N, GATED>::end(p, o));
}
template <int BITS, int GROUP, int N, bool GATED>
__global__ void join_kernel(const __grid_constant__ WideProblem<T> p,
                            Outputs o,
                            int blocks) {
  WideMatmul<T, BITS, GROUP, N, GATED>::join(
      p, blocks, Kind<BITS, GROUP, N, GATED>::end(p, o));
}

// Random on the device.
__global__ void fill_words(u32* p, size_t count, u32 seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
       i += size_t(gridDim.x) * blockDim.x) {
    u32 x = u32(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu,
        x ^= x >> 16;
    p[i] = x;
  }
}
__global__ void fill_values(
    T* p, size_t count, u32 seed, float around, float spread) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
       i += size_t(gridDim.x) * blockDim.x) {
    u32 x = u32(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu,
        x ^= x >> 16;
    p[i] = rounded(around + spread * (float(x & 0xffff) / 65536 - .5f));
  }
}
T* values(size_t count, u32 seed, float around, float spread) {
  T* p;
  CHECK(cudaMalloc(&p, count * 2));
  fill_values<<<512, 256>>>(p, count, seed, around, spread);
  return p;
}
QuantizedMatrix<T> matrix(int n, int k, int bits, int group, u32 seed) {
  u32* w;
  const size_t count = size_t(n) * k * bits / 32;
  CHECK(cudaMalloc(&w, count * 4));
  fill_words<<<512, 256>>>(w, count, seed);
  const float middle = (1 << bits) / 2 * 0.01f;
  return {w,
          values(size_t(n) * k / group,
                 seed + 1,
                 0.01f * 8 / (1 << (bits - 1)),
                 0.005f * 8 / (1 << (bits - 1))),
          values(size_t(n) * k / group,
                 seed + 2,
                 -middle * 8 / (1 << (bits - 1)),
                 0.01f),
          nullptr,
          n};
}
template <class U>
std::vector<U> download(const U* p, size_t count) {
  std::vector<U> v(count);
  CHECK(cudaMemcpy(v.data(), p, count * sizeof(U), cudaMemcpyDeviceToHost));
  return v;
}

double weight(const std::vector<u32>& w,
              const std::vector<T>& s,
              const std::vector<T>& z,
              int k,
              int bits,
              int group,
              int row,
              int column) {
  const size_t at = size_t(row) * k + column;
  const u32 q = w[at * bits / 32] >> (column * bits % 32) & ((1u << bits) - 1);
  return double(number(s[at / group])) * q + number(z[at / group]);
}

// One product, or gate and up together, of `rows` rows.
template <int BITS, int GROUP, int N, bool GATED>
void measure(const char* name, int n, int k, int rows, bool norm, bool timed) {
  using Matmul = WideMatmul<T, BITS, GROUP, N, GATED>;
  const int shared = sizeof(typename Matmul::Shared);
  const size_t matrix_bytes =
      size_t(n) * k * BITS / 8 + size_t(n) * k / GROUP * 4;
  const int count = GATED ? 2 : 1;
  const int copies =
      timed ? std::max<size_t>(1, (150u << 20) / (matrix_bytes * count)) : 1;
  std::vector<WideProblem<T>> problems;
  const int row_tiles = (rows + N - 1) / N;
  T* arranged;
  CHECK(cudaMalloc(&arranged, size_t(row_tiles) * N * k * 2));
  const int outputs = GATED ? 128 : 256;
  const int tiles = (n + outputs - 1) / outputs * row_tiles;
  const int waves = (tiles + kBlocks - 1) / kBlocks;
  const int slots = tiles * 4 >= waves * kBlocks * 3 ? 0 : waves + 1;
  float* parts;
  CHECK(cudaMalloc(&parts, size_t(kBlocks) * (slots + 1) * 256 * N * 4));
  for (int i = 0; i < copies; ++i) {
    WideProblem<T> p{arranged, {}, count, k, rows, slots, parts};
    for (int j = 0; j < count; ++j) {
      p.matrices[j] = matrix(n, k, BITS, GROUP, 17 * i + 5 * j + 1);
    }
    problems.push_back(p);
  }
  T* x = values(size_t(rows) * k, 99, 0, 2);
  T* norm_weight = norm ? values(k, 98, 1, 0.5f) : nullptr;
  T* residual = values(size_t(rows) * n, 97, 0, 1);
  T* y;
  CHECK(cudaMalloc(&y, size_t(rows) * n * 2));
  const Outputs out{y, residual, 0.5f};
  auto arrange = [&](cudaStream_t s) {
    if (rows > 64) {
      arrange_kernel<BITS, N, 8>
          <<<row_tiles * N / 8, 512, 0, s>>>(x, rows, k, norm_weight, arranged);
    } else {
      arrange_kernel<BITS, N, 1>
          <<<row_tiles * N, 256, 0, s>>>(x, rows, k, norm_weight, arranged);
    }
  };
  auto launch = [&](cudaStream_t s, int i) {
    CHECK(cudaFuncSetAttribute(wide_kernel<BITS, GROUP, N, GATED>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared));
    wide_kernel<BITS, GROUP, N, GATED>
        <<<kBlocks, kWideBlockThreads, shared, s>>>(problems[i], out);
    if (slots > 0) {
      join_kernel<BITS, GROUP, N, GATED>
          <<<dim3(tiles, N / 8), kWideThreads, 0, s>>>(
              problems[i], out, kBlocks);
    }
  };
  arrange(0);
  launch(0, 0);
  CHECK(cudaDeviceSynchronize());
  auto got = download(y, size_t(rows) * n);
  auto hx = download(x, size_t(rows) * k);
  auto hr = download(residual, size_t(rows) * n);
  std::vector<T> hn;
  if (norm) hn = download(norm_weight, k);
  std::vector<std::vector<u32>> w;
  std::vector<std::vector<T>> s, z;
  for (int j = 0; j < count; ++j) {
    const auto& m = problems[0].matrices[j];
    w.push_back(download(m.words, size_t(n) * k * BITS / 32));
    s.push_back(download(m.scales, size_t(n) * k / GROUP));
    z.push_back(download(m.zeros, size_t(n) * k / GROUP));
  }
  std::mt19937 rng(3);
  double worst = 0, squares = 0, wants = 0;
  const int samples = 400;
  for (int i = 0; i < samples; ++i) {
    const int m = i < 8 ? rows - 1 : rng() % rows;
    const int c = i % 8 == 0 ? n - 1 - i / 8 % 4 : rng() % n;
    double square = 0;
    for (int j = 0; j < k; ++j) square += pow(number(hx[size_t(m) * k + j]), 2);
    const double factor = norm ? 1 / sqrt(square / k + 1e-5) : 1;
    double sums[2] = {};
    for (int j = 0; j < k; ++j) {
      double v = number(hx[size_t(m) * k + j]) * factor;
      if (norm) v *= number(hn[j]);
      for (int t = 0; t < count; ++t) {
        sums[t] += v * weight(w[t], s[t], z[t], k, BITS, GROUP, c, j);
      }
    }
    double want = GATED ? sums[0] / (1 + exp(-sums[0])) * sums[1]
                        : number(hr[size_t(m) * n + c]) + 0.5 * sums[0];
    const double have = number(got[size_t(m) * n + c]);
    squares += (want - have) * (want - have);
    wants += want * want;
    worst = std::max(worst, fabs(want - have));
  }
  const double error = sqrt(squares / wants);
  printf(
      "%-8s bits %d group %3d N %3d rows %4d n %6d k %5d  error %.4f (worst "
      "%.3f of %.3f) %s",
      name,
      BITS,
      GROUP,
      N,
      rows,
      n,
      k,
      error,
      worst,
      sqrt(wants / samples),
      error < 0.01 ? "" : "WRONG");
  if (timed) {
    const double us = time_us(launch, copies);
    const double prepare =
        time_us([&](cudaStream_t st, int) { arrange(st); }, 1);
    printf("  %8.2f us + %5.2f  %6.0f GB/s %6.1f TFLOP/s",
           us,
           prepare,
           matrix_bytes * count / us / 1e3,
           2.0 * n * count * k * rows / us / 1e6);
  }
  printf("\n");
  for (auto& p : problems) {
    for (int j = 0; j < count; ++j) {
      cudaFree((void*)p.matrices[j].words);
      cudaFree((void*)p.matrices[j].scales);
      cudaFree((void*)p.matrices[j].zeros);
    }
  }
  for (void* each : {(void*)x,
                     (void*)norm_weight,
                     (void*)residual,
                     (void*)y,
                     (void*)arranged,
                     (void*)parts})
    cudaFree(each);
}

template <int N>
void shapes(int rows) {
  measure<4, 64, N, false>("qkv", 6144, 4096, rows, false, true);
  measure<4, 64, N, false>("o", 4096, 4096, rows, false, true);
  measure<4, 64, N, true>("gate up", 14336, 4096, rows, false, true);
  measure<4, 64, N, false>("down", 4096, 14336, rows, false, true);
  measure<4, 64, N, false>("head", 128256, 4096, rows, false, true);
}

int main(int argc, char**) {
  if (argc > 1) {  // for a profiler
    measure<4, 64, 32, true>("gate up", 14336, 4096, 32, false, false);
    measure<4, 64, 128, true>("gate up", 14336, 4096, 128, false, false);
    measure<4, 64, 128, false>("o", 4096, 4096, 2048, false, false);
    return 0;
  }
  measure<4, 64, 8, false>("check", 1000, 512, 5, true, false);
  measure<4, 32, 16, false>("check", 1033, 1024, 13, true, false);
  measure<4, 128, 32, false>("check", 4096, 2560, 32, false, false);
  measure<8, 64, 64, false>("check", 40000, 1024, 50, true, false);
  measure<8, 32, 128, false>("check", 4000, 1024, 300, true, false);
  measure<8, 128, 16, true>("check", 1000, 1024, 9, true, false);
  measure<4, 64, 128, true>("check", 20000, 1024, 129, true, false);
  shapes<8>(8);
  shapes<32>(32);
  shapes<64>(64);
  shapes<128>(128);
  measure<4, 64, 128, false>("qkv", 6144, 4096, 2048, false, true);
  measure<4, 64, 128, false>("o", 4096, 4096, 2048, false, true);
  measure<4, 64, 128, true>("gate up", 14336, 4096, 2048, false, true);
  measure<4, 64, 128, false>("down", 4096, 14336, 2048, false, true);
  measure<8, 64, 32, false>("down 8", 4096, 14336, 32, false, true);
}
