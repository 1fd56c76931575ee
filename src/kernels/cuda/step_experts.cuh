// Which experts work on a token: each block computes some of the router's
// logits, and after the barrier all make the same choice from them.
#pragma once

#include "step_linear.cuh"

namespace mlxlm {

template <class T, class Input>
struct StepRouter {
  static constexpr int kMostExperts = 256;
  static constexpr u32 kAll = 0xffffffffu;

  struct Shared {
    float sums[kStepWarps];
    float squares[kStepWarps];
    StepChoice choice;
    unsigned long long chosen;  // barrier of the loading warps
  };

  // The logits of this block's experts, with weights in float32.
  static __device__ void route(const StepOperation<T>& op,
                               const float* from,
                               float* logits,
                               Shared& shared) {
    const auto* weights = reinterpret_cast<const float*>(op.matrices[0].words);
    const typename Input::State state{from, op.norm};
    for (int e = blockIdx.x; e < op.num_experts; e += gridDim.x) {
      float sum = 0;
      float square = 0;
      for (int k = threadIdx.x * 8; k < op.size; k += kStepThreads * 8) {
        const auto* row = reinterpret_cast<const float4*>(
            weights + static_cast<size_t>(e) * op.size + k);
        const float4 a = row[0];
        const float4 b = row[1];
        typename Input::State::Read read;
        float x[8];
        state.start(k, read);
        square += state.finish(k, read, x);
        sum += x[0] * a.x + x[1] * a.y + x[2] * a.z + x[3] * a.w + x[4] * b.x +
               x[5] * b.y + x[6] * b.z + x[7] * b.w;
      }
      sum = lane_sum<32>(sum);
      square = lane_sum<32>(square);
      if (threadIdx.x % 32 == 0) {
        shared.sums[threadIdx.x / 32] = sum;
        shared.squares[threadIdx.x / 32] = square;
      }
      step_sync();
      if (threadIdx.x == 0) {
        for (int i = 1; i < kStepWarps; ++i) {
          sum += shared.sums[i];
          square += shared.squares[i];
        }
        logits[e] = sum * rsqrtf(square / op.size + op.eps);
      }
      step_sync();
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

  // By one warp.
  static __device__ void choose(const StepOperation<T>& op,
                                const float* from,
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
    shared.choice.experts[lane] = expert;
    shared.choice.weights[lane] = own / lane_sum<32>(total) * op.scale;
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.chosen);
  }
};

}  // namespace mlxlm
