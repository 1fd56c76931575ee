// What is done with logits over a vocabulary: each row is shared out to some
// blocks, whose results a second kernel joins.
#pragma once

#include "common.cuh"

namespace mlxlm {

constexpr int kLogitsThreads = 256;

// Calls use(i, x[i]) for what this block has of row blockIdx.y, [V]; the blocks
// of a row are those of blockIdx.x.
template <class Use>
__device__ void each_logit(const float* x, int size, const Use& use) {
  const int share = (size + gridDim.x - 1) / gridDim.x;
  const int begin = blockIdx.x * share;
  const int end = min(size, begin + share);
  const float* row = x + static_cast<size_t>(blockIdx.y) * size;
  for (int i = begin + threadIdx.x; i < end; i += kLogitsThreads) {
    use(i, row[i]);
  }
}

// Joins what the threads of a block have, in all of them: join(a, b) of two.
template <class Value, class Join>
__device__ Value join_block(Value own, const Join& join) {
  __shared__ Value all[kLogitsThreads];
  all[threadIdx.x] = own;
  __syncthreads();
  for (int step = kLogitsThreads / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) {
      all[threadIdx.x] = join(all[threadIdx.x], all[threadIdx.x + step]);
    }
    __syncthreads();
  }
  return all[0];
}

// Joins `count` values of a row's blocks, value_of(i), in each warp alike.
template <class Value, class ValueOf, class Join>
__device__ Value join_parts(int count,
                            const Value& none,
                            const ValueOf& value_of,
                            const Join& join) {
  static_assert(sizeof(Value) == 8);
  Value own = none;
  for (int i = threadIdx.x % 32; i < count; i += 32) {
    own = join(own, value_of(i));
  }
  auto of_lane = [&](int lane) {
    union {
      Value value;
      unsigned long long bits;
    } moved{own};
    moved.bits = __shfl_sync(0xffffffffu, moved.bits, lane);
    return moved.value;
  };
  for (int step = 16; step > 0; step /= 2) {
    own = join(own, of_lane((threadIdx.x + step) % 32));
  }
  return of_lane(0);
}

// exp(highest) * sum is the sum of exponentials.
struct ExponentialSum {
  float highest;
  float sum;

  static __device__ ExponentialSum none() { return {-3.4e38f, 0}; }
  static __device__ ExponentialSum join(ExponentialSum a, ExponentialSum b) {
    const float most = fmaxf(a.highest, b.highest);
    return {
        most,
        a.sum * __expf(a.highest - most) + b.sum * __expf(b.highest - most)};
  }
};

// parts [rows, blocks].
__device__ inline void sum_exponentials(const float* x,
                                        int size,
                                        float2* parts) {
  auto own = ExponentialSum::none();
  each_logit(x, size, [&](int, float value) {
    own = ExponentialSum::join(own, {value, 1});
  });
  own = join_block(own, ExponentialSum::join);
  if (threadIdx.x == 0) {
    parts[blockIdx.y * gridDim.x + blockIdx.x] =
        make_float2(own.highest, own.sum);
  }
}

__device__ inline void subtract_sum(const float* x,
                                    int size,
                                    const float2* parts,
                                    float* y) {
  auto part_of = [&](int i) {
    const float2 part = parts[blockIdx.y * gridDim.x + i];
    return ExponentialSum{part.x, part.y};
  };
  const auto all = join_parts(
      gridDim.x, ExponentialSum::none(), part_of, ExponentialSum::join);
  const float shift = all.highest + logf(all.sum);
  float* row = y + static_cast<size_t>(blockIdx.y) * size;
  each_logit(x, size, [&](int i, float value) { row[i] = value - shift; });
}

// The largest, of equal ones the first.
struct Largest {
  float value;
  int index;

  static __device__ Largest none() {
    return {__int_as_float(0xff800000), 0x7fffffff};
  }
  static __device__ Largest join(Largest a, Largest b) {
    const bool second =
        b.value > a.value || (b.value == a.value && b.index < a.index);
    return second ? b : a;
  }
};

// values and indices [rows, blocks].
__device__ inline void find_largest(const float* x,
                                    int size,
                                    float* values,
                                    int* indices) {
  auto own = Largest::none();
  each_logit(x, size, [&](int i, float value) {
    own = Largest::join(own, {value, i});
  });
  own = join_block(own, Largest::join);
  if (threadIdx.x == 0) {
    values[blockIdx.y * gridDim.x + blockIdx.x] = own.value;
    indices[blockIdx.y * gridDim.x + blockIdx.x] = own.index;
  }
}

// A block for each row; 0 where nothing is a number.
__device__ inline void join_largest(const float* values,
                                    const int* indices,
                                    int num_parts,
                                    u32* y) {
  auto part_of = [&](int i) {
    const int at = blockIdx.x * num_parts + i;
    return Largest{values[at], indices[at]};
  };
  const auto all =
      join_parts(num_parts, Largest::none(), part_of, Largest::join);
  if (threadIdx.x == 0) y[blockIdx.x] = all.index == 0x7fffffff ? 0 : all.index;
}

}  // namespace mlxlm
