// Which experts work on a token: each block computes some of the router's
// logits, and after the barrier all make the same choice from them.
#pragma once

#include "step_linear.cuh"

namespace mlxlm {

template <class T, class Input, int M>
struct StepRouter {
  static constexpr int kMostExperts = 256;
  static constexpr u32 kAll = 0xffffffffu;

  struct Shared {
    float sums[M][kStepWarps];
    float squares[M][kStepWarps];
    StepChoice choices[M];
    unsigned long long chosen;  // barrier of the loading warps
  };

  // Row m's logits of this block's experts, with weights in float32, go to
  // logits + m * stride.
  static __device__ void route(const StepOperation<T>& op,
                               int num_rows,
                               const float* from,
                               float* logits,
                               int stride,
                               Shared& shared) {
    const int warp = threadIdx.x / 32;
    for (int e = blockIdx.x; e < op.num_experts; e += gridDim.x) {
      float sums[M] = {};
      float squares[M] = {};
      add_products(op, e, num_rows, from, sums, squares);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const float sum = lane_sum<32>(sums[m]);
        const float square = lane_sum<32>(squares[m]);
        if (threadIdx.x % 32 == 0) {
          shared.sums[m][warp] = sum;
          shared.squares[m][warp] = square;
        }
      }
      step_sync();
      if (const int m = threadIdx.x; m < num_rows) {
        float sum = 0;
        float square = 0;
        for (int i = 0; i < kStepWarps; ++i) {
          sum += shared.sums[m][i];
          square += shared.squares[m][i];
        }
        logits[m * stride + e] = sum * rsqrtf(square / op.size + op.eps);
      }
      step_sync();
    }
  }

  // This thread's part of an expert's products.
  static __device__ void add_products(const StepOperation<T>& op,
                                      int expert,
                                      int num_rows,
                                      const float* from,
                                      float (&sums)[M],
                                      float (&squares)[M]) {
    const auto* weights = reinterpret_cast<const float*>(op.matrices[0].words) +
                          static_cast<size_t>(expert) * op.size;
    for (int k = threadIdx.x * 8; k < op.size; k += kStepThreads * 8) {
      const auto* row = reinterpret_cast<const float4*>(weights + k);
      const float4 a = row[0];
      const float4 b = row[1];
      const float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      constexpr int kTogether = M < 4 ? M : 4;  // rows whose reads wait
#pragma unroll
      for (int first = 0; first < M; first += kTogether) {
        typename Input::State::Read reads[kTogether];
        auto state_of = [&](int m) {
          const size_t row = min(m, num_rows - 1);
          return typename Input::State{from + row * op.size, op.norm};
        };
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          state_of(first + i).start(k, reads[i]);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          float x[8];
          const int m = first + i;
          squares[m] += state_of(m).finish(k, reads[i], x);
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[m] += x[j] * w[j];
        }
      }
    }
  }

  // By the loading warps, ahead of route().
  static __device__ void prefetch(const StepOperation<T>& op, int thread) {
    const auto* weights = reinterpret_cast<const float*>(op.matrices[0].words);
    for (int e = blockIdx.x; e < op.num_experts; e += gridDim.x) {
      for (int k = thread * 32; k < op.size; k += kLoadThreads * 32) {
        mlxlm::prefetch(weights + static_cast<size_t>(e) * op.size + k);
      }
    }
  }

  // Integers in the order of the numbers, and back.
  static __device__ u32 key_of(float x) {
    const u32 bits = __float_as_uint(x);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  }
  static __device__ float number_of(u32 key) {
    return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
  }

  // A row's experts, by one warp.
  static __device__ void choose(const StepOperation<T>& op,
                                const float* from,
                                StepChoice& choice,
                                Shared& shared) {
    constexpr int kEach = kMostExperts / 32;
    const int lane = threadIdx.x % 32;
    float logits[kEach];
    u32 keys[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int e = lane + 32 * i;
      const bool exists = e < op.num_experts;
      logits[i] = exists ? __ldcg(from + e) : -1e30f;
      keys[i] = exists ? key_of(logits[i]) : 0;
    }
    int expert = 0;        // choice number `lane`
    float logit = -1e30f;  // its
    for (int c = 0; c < op.num_chosen; ++c) {
      u32 most = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) most = max(most, keys[i]);
      const u32 best = __reduce_max_sync(kAll, most);
      const int winner = __ffs(__ballot_sync(kAll, most == best)) - 1;
      int index = 0;
      bool found = lane != winner;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (!found && keys[i] == best) {
          found = true, keys[i] = 0;
          index = lane + 32 * i;
        }
      }
      index = __shfl_sync(kAll, index, winner);
      if (lane == c) {
        expert = min(index, op.num_experts - 1);
        logit = number_of(best);
      }
    }
    const float highest = __shfl_sync(kAll, logit, 0);
    const float own = lane < op.num_chosen ? __expf(logit - highest) : 0.0f;
    float total = own;
    if (op.normalizes == 0) {
      total = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) total += __expf(logits[i] - highest);
    }
    choice.experts[lane] = expert;
    choice.weights[lane] = own / lane_sum<32>(total) * op.scale;
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.chosen);
  }
};

}  // namespace mlxlm
