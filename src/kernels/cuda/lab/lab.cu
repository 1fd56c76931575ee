// Checks and times the CUDA kernels over the shapes of an 8B llama.
//   nvcc -O3 -std=c++17 -arch=sm_90a -I .. lab.cu -o lab && ./lab
// Prints per kernel and shape: largest error against float64, microseconds,
// share of the read bandwidth measured first.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "decode_attention.cuh"
#include "lab.h"
#include "quantized_matmul.cuh"

using namespace mlxlm;

template <class U>
U* upload(const std::vector<U>& v) {
  U* p;
  CHECK(cudaMalloc(&p, v.size() * sizeof(U)));
  CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(U), cudaMemcpyHostToDevice));
  return p;
}

double bandwidth_bytes_per_us = 1;

template <int BITS, int GROUP, int M, int CHUNK, int COUNT>
__global__ void norm_linear_kernel(QuantizedMatrix<T> w0,
                                   QuantizedMatrix<T> w1,
                                   QuantizedMatrix<T> w2,
                                   T* y0,
                                   T* y1,
                                   T* y2,
                                   NormedRows<T> x,
                                   const T* residual,
                                   int size) {
  const QuantizedMatrix<T> all[3] = {w0, w1, w2};
  T* const ys[3] = {y0, y1, y2};
  QuantizedMatrix<T> w[COUNT];
  T* y[COUNT];
  for (int i = 0; i < COUNT; ++i) w[i] = all[i], y[i] = ys[i];
  norm_linear<T, BITS, GROUP, false, M, CHUNK, COUNT>(
      w, reinterpret_cast<T* const(&)[COUNT]>(y), x, residual, 1.0f, size);
}

struct Silu {
  __device__ float operator()(float x) const { return x / (1 + __expf(-x)); }
};

template <int BITS, int GROUP, int M, int CHUNK>
__global__ void gated_kernel(QuantizedMatrix<T> gate,
                             QuantizedMatrix<T> up,
                             T* y,
                             NormedRows<T> x,
                             int size) {
  norm_gated<T, BITS, GROUP, false, M, CHUNK>(gate, up, y, x, size, Silu());
}

std::mt19937 rng(1);

struct HostMatrix {
  int n, k, bits, group;
  std::vector<u32> words;
  std::vector<T> scales, zeros;
  HostMatrix(int n, int k, int bits, int group)
      : n(n),
        k(k),
        bits(bits),
        group(group),
        words(size_t(n) * k * bits / 32),
        scales(size_t(n) * k / group),
        zeros(scales.size()) {
    for (auto& w : words) w = rng();
    std::uniform_real_distribution<float> u(0.5, 1.5);
    for (auto& s : scales) s = rounded(u(rng) * 0.01f);
    for (auto& s : zeros) s = rounded(-u(rng) * 0.08f);
  }
  double at(int r, int c) const {
    u32 w = words[(size_t(r) * k + c) * bits / 32];
    u32 q = (w >> (c * bits % 32)) & ((1u << bits) - 1);
    size_t g = size_t(r) * (k / group) + c / group;
    return double(number(scales[g])) * q + number(zeros[g]);
  }
};

std::vector<T> random_values(size_t count, float scale) {
  std::normal_distribution<float> d;
  std::vector<T> v(count);
  for (auto& x : v) x = rounded(d(rng) * scale);
  return v;
}

template <int BITS, int GROUP, int M, int CHUNK = 4096>
void matmul(int n, int k, int rows, bool norm, bool check, const char* what) {
  using Matmul = FewRowsMatmul<T, BITS, GROUP, false, M, 1, CHUNK>;
  auto kernel = norm_linear_kernel<BITS, GROUP, M, CHUNK, 1>;
  const int shared = sizeof(typename Matmul::Shared);
  CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  int per_sm;
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &per_sm, kernel, kMatmulThreads, shared));
  const size_t bytes = size_t(n) * k * BITS / 8 + size_t(n) * k / GROUP * 4;
  HostMatrix host(n, k, BITS, GROUP);
  auto x = random_values(size_t(rows) * k, 1);
  auto weight = random_values(k, 1);
  auto residual = random_values(size_t(rows) * n, 1);
  const int copies = check ? 1 : int(std::max<size_t>(1, (200u << 20) / bytes));
  std::vector<QuantizedMatrix<T>> w;
  for (int i = 0; i < copies; ++i) {
    w.push_back({upload(host.words),
                 upload(host.scales),
                 upload(host.zeros),
                 nullptr,
                 n});
  }
  T* y;
  CHECK(cudaMalloc(&y, size_t(rows) * n * sizeof(T)));
  NormedRows<T> nx{upload(x), rows, norm ? upload(weight) : nullptr, 1e-5f};
  const T* r = upload(residual);
  const int blocks = std::min((n + 15) / 16, 132 * per_sm);
  auto launch = [&](cudaStream_t s, int i) {
    kernel<<<blocks, kMatmulThreads, shared, s>>>(
        w[i], w[i], w[i], y, y, y, nx, r, k);
  };
  launch(0, 0);
  CHECK(cudaDeviceSynchronize());
  double worst = 0;
  std::vector<T> got(size_t(rows) * n);
  CHECK(cudaMemcpy(
      got.data(), y, got.size() * sizeof(T), cudaMemcpyDeviceToHost));
  for (int m = 0; m < rows; ++m) {
    double square = 0;
    for (int c = 0; c < k; ++c) square += pow(number(x[size_t(m) * k + c]), 2);
    const float inverse = norm ? 1 / sqrtf(square / k + 1e-5f) : 1;
    for (int row = 0; row < n; row += check ? 1 : n / 7) {
      double sum = 0, size = 0;
      for (int c = 0; c < k; ++c) {
        float v = number(x[size_t(m) * k + c]);
        if (norm) v = v * inverse * number(weight[c]);
        sum += host.at(row, c) * v;
        size += fabs(host.at(row, c) * v);
      }
      sum += number(residual[size_t(m) * n + row]);
      worst = std::max(worst,
                       fabs(sum - number(got[size_t(m) * n + row])) /
                           (fabs(sum) + size / sqrt(k)));
    }
  }
  if (check) {
    printf(
        "%-10s bits %d group %3d rows %2d  n %5d k %5d norm %d  error %.4f "
        "%s\n",
        what,
        BITS,
        GROUP,
        rows,
        n,
        k,
        norm,
        worst,
        worst < 0.01 ? "" : "WRONG");
  } else {
    const double us = time_us(launch, copies);
    printf(
        "%-10s bits %d group %3d rows %2d per_sm %d n %5d k %5d  error %.4f  "
        "%7.2f us  %5.1f %% of read bandwidth\n",
        what,
        BITS,
        GROUP,
        rows,
        per_sm,
        n,
        k,
        worst,
        us,
        100 * bytes / us / bandwidth_bytes_per_us);
  }
  for (auto& m : w)
    cudaFree((void*)m.words), cudaFree((void*)m.scales),
        cudaFree((void*)m.zeros);
  cudaFree(y);
}

template <int M, int CHUNK = 4096>
void gated(int n, int k, int rows) {
  auto kernel = gated_kernel<4, 64, M, CHUNK>;
  const int shared =
      sizeof(typename FewRowsMatmul<T, 4, 64, false, M, 2, CHUNK>::Shared);
  CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  int per_sm;
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &per_sm, kernel, kMatmulThreads, shared));
  const size_t bytes = 2 * (size_t(n) * k / 2 + size_t(n) * k / 64 * 4);
  HostMatrix g(n, k, 4, 64), u(n, k, 4, 64);
  auto x = random_values(size_t(rows) * k, 0.1f);
  auto weight = random_values(k, 1);
  const int copies = int(std::max<size_t>(1, (200u << 20) / bytes));
  std::vector<QuantizedMatrix<T>> a, b;
  for (int i = 0; i < copies; ++i) {
    a.push_back(
        {upload(g.words), upload(g.scales), upload(g.zeros), nullptr, n});
    b.push_back(
        {upload(u.words), upload(u.scales), upload(u.zeros), nullptr, n});
  }
  T* y;
  CHECK(cudaMalloc(&y, size_t(rows) * n * sizeof(T)));
  NormedRows<T> nx{upload(x), rows, upload(weight), 1e-5f};
  auto launch = [&](cudaStream_t s, int i) {
    kernel<<<std::min((n + 15) / 16, 132 * per_sm),
             kMatmulThreads,
             shared,
             s>>>(a[i], b[i], y, nx, k);
  };
  launch(0, 0);
  CHECK(cudaDeviceSynchronize());
  std::vector<T> got(size_t(rows) * n);
  CHECK(cudaMemcpy(
      got.data(), y, got.size() * sizeof(T), cudaMemcpyDeviceToHost));
  double worst = 0;
  for (int m = 0; m < rows; ++m) {
    double square = 0;
    for (int c = 0; c < k; ++c) square += pow(number(x[size_t(m) * k + c]), 2);
    const float inverse = 1 / sqrtf(square / k + 1e-5f);
    for (int row = 0; row < n; row += n / 7) {
      double sg = 0, su = 0;
      for (int c = 0; c < k; ++c) {
        float v = number(x[size_t(m) * k + c]) * inverse * number(weight[c]);
        sg += g.at(row, c) * v, su += u.at(row, c) * v;
      }
      double want = sg / (1 + exp(-sg)) * su;
      worst = std::max(
          worst,
          fabs(want - number(got[size_t(m) * n + row])) / (fabs(want) + 1));
    }
  }
  const double us = time_us(launch, copies);
  printf(
      "gated      rows %2d n %d k %d  error %.4f  %7.2f us  %5.1f %% of read "
      "bandwidth\n",
      rows,
      n,
      k,
      worst,
      us,
      100 * bytes / us / bandwidth_bytes_per_us);
  for (auto* v : {&a, &b})
    for (auto& m : *v)
      cudaFree((void*)m.words), cudaFree((void*)m.scales),
          cudaFree((void*)m.zeros);
}

template <int D, int Q>
__global__ void attention_kernel(DecodeAttention<T> a,
                                 AttendedRow<T> row,
                                 float* sums,
                                 float* weights) {
  const size_t at =
      size_t(blockIdx.z) * a.num_kv_heads * row.capacity_tokens * D;
  row.keys += at, row.values += at;
  decode_attention<T, D, Q>(a, row, sums, weights);
}
template <int D>
__global__ void combine_kernel(const float* sums,
                               const float* weights,
                               int shares,
                               T* out) {
  combine_shares<T, D>(sums, weights, shares, nullptr, out);
}

template <int D, int Q>
void attention(int b, int h, int hkv, int keys, int capacity, int shares) {
  auto q = random_values(size_t(b) * h * D, 1),
       k = random_values(size_t(b) * hkv * capacity * D, 1),
       v = random_values(k.size(), 1);
  const int copies = std::max<int>(1, (100u << 20) / (k.size() * 4));
  std::vector<T*> ks, vs;
  for (int i = 0; i < copies; ++i)
    ks.push_back(upload(k)), vs.push_back(upload(v));
  T *qd = upload(q), *out;
  float *sums, *weights;
  CHECK(cudaMalloc(&out, q.size() * 2));
  CHECK(cudaMalloc(&sums, q.size() * shares * 4));
  CHECK(cudaMalloc(&weights, size_t(b) * h * shares * 8));
  // The new tokens are those that are there already.
  auto newest = [&](const std::vector<T>& from) {
    std::vector<T> all;
    for (int i = 0; i < hkv; ++i) {
      for (int r = 0; r < b; ++r) {
        const T* own = &from[((size_t(r) * hkv + i) * capacity + keys - 1) * D];
        all.insert(all.end(), own, own + D);
      }
    }
    return upload(all);
  };
  T *new_k = newest(k), *new_v = newest(v);
  auto launch = [&](cudaStream_t s, int i) {
    const DecodeAttention<T> a{qd, new_k, new_v, b, h, hkv, 1 / sqrtf(D), 0};
    attention_kernel<D, Q><<<dim3(shares, h / Q, b), kAttentionThreads, 0, s>>>(
        a, {ks[i], vs[i], keys - 1, keys, capacity}, sums, weights);
    combine_kernel<D><<<dim3(h, b), D, 0, s>>>(sums, weights, shares, out);
  };
  launch(0, 0);
  CHECK(cudaDeviceSynchronize());
  std::vector<T> got(q.size());
  CHECK(cudaMemcpy(got.data(), out, got.size() * 2, cudaMemcpyDeviceToHost));
  double worst = 0;
  for (int r = 0; r < b; ++r)
    for (int i = 0; i < h; i += std::max(1, h / 5)) {
      std::vector<double> p(keys);
      const size_t base = (size_t(r) * hkv + i / (h / hkv)) * capacity * D;
      double total = 0;
      for (int t = 0; t < keys; ++t) {
        double s = 0;
        for (int d = 0; d < D; ++d)
          s += double(number(q[(size_t(i) * b + r) * D + d])) *
               number(k[base + size_t(t) * D + d]);
        p[t] = exp(s / sqrt(D)), total += p[t];
      }
      for (int d = 0; d < D; ++d) {
        double y = 0;
        for (int t = 0; t < keys; ++t)
          y += p[t] * number(v[base + size_t(t) * D + d]);
        worst = std::max(
            worst, fabs(y / total - number(got[(size_t(r) * h + i) * D + d])));
      }
    }
  const double us = time_us(launch, copies);
  const double bytes = double(b) * hkv * keys * D * 4;
  printf(
      "attention  d %d queries %d rows %2d heads %d/%d keys %5d shares %2d  "
      "error %.4f  %7.2f us  %5.1f %% of read bandwidth\n",
      D,
      Q,
      b,
      h,
      hkv,
      keys,
      shares,
      worst,
      us,
      100 * bytes / us / bandwidth_bytes_per_us);
  cudaFree(new_k), cudaFree(new_v);
  for (auto* p : ks) cudaFree(p);
  for (auto* p : vs) cudaFree(p);
}

__global__ void read_all(const uint4* p, size_t n, u32* out) {
  u32 x = 0;
  size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x,
         step = size_t(gridDim.x) * blockDim.x;
  for (; i + 3 * step < n; i += 4 * step) {
    uint4 a = __ldcs(p + i), b = __ldcs(p + i + step),
          c = __ldcs(p + i + 2 * step), d = __ldcs(p + i + 3 * step);
    x ^= a.x ^ b.y ^ c.z ^ d.w ^ a.y ^ b.x ^ c.w ^ d.z;
  }
  if (x == 12345) *out = x;
}

__global__ void nothing() {}

int main() {
  cudaDeviceProp prop;
  CHECK(cudaGetDeviceProperties(&prop, 0));
  {
    uint4* p;
    u32* out;
    const size_t bytes = size_t(2) << 30;
    CHECK(cudaMalloc(&p, bytes));
    CHECK(cudaMemset(p, 1, bytes));
    CHECK(cudaMalloc(&out, 4));
    const double us = time_us(
        [&](cudaStream_t s, int) {
          read_all<<<132 * 8, 512, 0, s>>>(p, bytes / 16, out);
        },
        1);
    bandwidth_bytes_per_us = bytes / us;
    cudaFree(p);
  }
  {
    const double us = time_us(
        [&](cudaStream_t s, int) { nothing<<<256, 256, 40000, s>>>(); }, 1);
    printf("a kernel that does nothing: %.2f us\n", us);
  }
  printf("%s, read bandwidth %.0f GB/s\n",
         prop.name,
         bandwidth_bytes_per_us / 1e3);
  matmul<4, 64, 1>(48, 256, 1, false, true, "check");
  matmul<4, 64, 1>(37, 448, 1, true, true, "check");
  matmul<4, 32, 1>(64, 96, 1, true, true, "check");
  matmul<4, 128, 1>(64, 640, 1, true, true, "check");
  matmul<8, 64, 1>(64, 320, 1, true, true, "check");
  matmul<8, 32, 1>(64, 320, 1, true, true, "check");
  matmul<8, 128, 1>(64, 384, 1, true, true, "check");
  matmul<4, 64, 2, 2048>(64, 8192 + 320, 2, true, true, "check");
  matmul<4, 64, 4>(65, 4096 + 64, 3, true, true, "check");
  matmul<4, 64, 8, 1024>(64, 2048 * 2 + 64, 8, true, true, "check");
  matmul<4, 64, 8>(64, 448, 5, true, true, "check");
  matmul<4, 64, 16>(64, 2048 + 64, 16, true, true, "check");
  matmul<8, 64, 8>(64, 448, 7, true, true, "check");
  matmul<4, 64, 1>(6144, 4096, 1, true, false, "qkv");
  matmul<4, 64, 1>(4096, 4096, 1, false, false, "o");
  matmul<4, 64, 1, 14336>(4096, 14336, 1, false, false, "down");
  matmul<4, 64, 1>(128256, 4096, 1, true, false, "head");
  matmul<4, 64, 1>(28672, 4096, 1, true, false, "gate-up");
  matmul<8, 64, 1>(14336, 4096, 1, true, false, "8 bits");
  gated<1>(14336, 4096, 1);
  gated<8>(14336, 4096, 8);
  matmul<4, 64, 2>(14336, 4096, 2, true, false, "two");
  matmul<4, 64, 4>(14336, 4096, 4, true, false, "four");
  matmul<4, 64, 8>(14336, 4096, 8, true, false, "eight");
  matmul<4, 64, 8>(14336, 4096, 8, false, false, "no norm");
  matmul<4, 64, 8>(4096, 4096, 8, false, false, "o");
  matmul<4, 64, 8>(4096, 14336, 8, false, false, "down");
  matmul<4, 64, 8, 2048>(4096, 14336, 8, false, false, "down");
  matmul<4, 64, 16, 4096>(14336, 4096, 16, false, false, "sixteen");
  attention<128, 4>(1, 32, 8, 100, 256, 2);
  for (int shares : {4, 8, 16}) attention<128, 4>(1, 32, 8, 512, 768, shares);
  for (int shares : {16, 32}) attention<128, 4>(1, 32, 8, 2048, 2304, shares);
  for (int shares : {16, 32, 64})
    attention<128, 4>(1, 32, 8, 8192, 8448, shares);
  attention<128, 4>(8, 32, 8, 512, 768, 8);
  attention<64, 4>(1, 32, 8, 500, 512, 8);
  attention<256, 2>(1, 8, 2, 700, 768, 8);
  attention<128, 1>(1, 8, 8, 700, 768, 8);
}
