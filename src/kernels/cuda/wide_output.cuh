// The ends of products of many rows: bias and residual, or gate times up.
#pragma once

#include "wide_matmul.cuh"

namespace mlxlm {

// Eight rows of x by eight outputs, of which a lane has output lane / 4 and
// rows 2 (lane % 4) and the next, to and from memory that has outputs side by
// side.
template <class T>
struct WideBlock {
  int lane = threadIdx.x % 32;
  size_t at;  // this lane's place in memory
  bool is_inside, has_second;
  bool is_even;  // pairs are one word

  // From output n and row m on, of [num_rows, num_outputs].
  __device__ WideBlock(int n, int m, int num_outputs, int num_rows) {
    n += lane % 4 * 2, m += lane / 4;
    at = static_cast<size_t>(m) * num_outputs + n;
    is_inside = m < num_rows && n < num_outputs;
    has_second = n + 1 < num_outputs;
    is_even = num_outputs % 2 == 0;
  }

  static __device__ u32 transposed(u32 pair) {
    u32 result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;"
        : "=r"(result)
        : "r"(pair));
    return result;
  }

  __device__ float2 load(const T* from) const {
    u32 pair = 0;
    if (is_inside && is_even) {
      pair = *reinterpret_cast<const u32*>(from + at);
    } else if (is_inside) {
      const auto* halves = reinterpret_cast<const unsigned short*>(from + at);
      pair = halves[0] | (has_second ? halves[1] << 16 : 0);
    }
    return Pair<T>::floats(transposed(pair));
  }

  __device__ void store(T* to, float first, float second) const {
    const u32 pair = transposed(Pair<T>::of(first, second));
    if (is_inside && is_even) {
      *reinterpret_cast<u32*>(to + at) = pair;
    } else if (is_inside) {
      auto* halves = reinterpret_cast<unsigned short*>(to + at);
      halves[0] = pair & 0xffff;
      if (has_second) halves[1] = pair >> 16;
    }
  }

  // Of this lane's output, from output n on; 0 where there is none.
  __device__ float bias(const QuantizedMatrix<T>& matrix, int n) const {
    if (matrix.bias == nullptr) return 0;
    return to_float(matrix.bias[min(n + lane / 4, matrix.num_rows - 1)]);
  }
};

// y_i = x W_i^T + bias, [num_rows, N_i]; with a residual that + scale * y.
template <class T, int BITS, int GROUP, int N>
struct WideLinear {
  using Matmul = WideMatmul<T, BITS, GROUP, N, false>;

  struct End {
    const WideProblem<T>& p;
    T* y[3];
    const T* residual;  // or null
    float scale;

    __device__ void operator()(int tile, int j, const float* sums) const {
      Matmul::each(
          p, tile, j, sums, [&](int i, int n, int m, const float* own) {
            const auto& matrix = p.matrices[i];
            const WideBlock<T> block(n, m, matrix.num_rows, p.num_rows);
            const float bias = block.bias(matrix, n);
            float2 values{own[0] + bias, own[1] + bias};
            if (residual != nullptr) {
              const float2 before = block.load(residual);
              values.x = before.x + scale * values.x;
              values.y = before.y + scale * values.y;
            }
            block.store(y[i], values.x, values.y);
          });
    }
  };
};

// y = activation(x Wg^T) * (x Wu^T).
template <class T, int BITS, int GROUP, int N, class Activation>
struct WideGated {
  using Matmul = WideMatmul<T, BITS, GROUP, N, true>;

  struct End {
    const WideProblem<T>& p;
    T* y;
    Activation activation;

    __device__ void operator()(int tile, int j, const float* sums) const {
      Matmul::each(p, tile, j, sums, [&](int, int n, int m, const float* own) {
        const auto& matrix = p.matrices[0];
        const WideBlock<T> block(n, m, matrix.num_rows, p.num_rows);
        const float gate = block.bias(matrix, n);
        const float up = block.bias(p.matrices[1], n);
        block.store(y,
                    activation(own[0] + gate) * (own[2] + up),
                    activation(own[1] + gate) * (own[3] + up));
      });
    }
  };
};

template <class T, int BITS, int GROUP, int N, class Activation>
__device__ auto wide_gated(const WideProblem<T>& p,
                           T* y,
                           const Activation& activation) {
  return
      typename WideGated<T, BITS, GROUP, N, Activation>::End{p, y, activation};
}

// Where only parts are computed.
struct WideNothing {
  __device__ void operator()(int, int, const float*) const {}
};

template <class Matmul, class T, class End>
__device__ void wide_matmul(const WideProblem<T>& p, const End& end) {
  extern __shared__ __align__(128) unsigned char memory[];
  Matmul::run(p,
              *reinterpret_cast<typename Matmul::Shared*>(memory),
              [&](int tile, const typename Matmul::Sums& sums) {
#pragma unroll
                for (int j = 0; j < Matmul::kSums / 4; ++j) {
                  end(tile, j, sums + j * 4);
                }
              });
}

}  // namespace mlxlm
