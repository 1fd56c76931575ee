// Between the projections of a layer and its attention: norm and rope of heads.
#pragma once

#include "common.cuh"

namespace mlxlm {

constexpr int kHeadWarps = 4;  // of a block; each has a head of a token

// Heads of one projection: x [L, H * D] -> y [H, L, D].
template <class T>
struct ProjectedHeads {
  const T* x;
  T* y;
  const T* norm;  // [D], or null
  float eps;
  int num_heads;
  bool turns;  // has a rope
};

// scale: of positions; freqs: what angles are divided by, or null and base.
struct HeadRope {
  const float* freqs;
  float base;
  float scale;
  float input_scale;
};

// One head of one token by one warp; ROTATED: dimensions that turn.
template <class T, int D, int ROTATED, bool TRADITIONAL>
__device__ void norm_rope_head(const ProjectedHeads<T>& p,
                               const HeadRope& rope,
                               int head,
                               int token,
                               int num_tokens,
                               int position) {
  __shared__ float rows[kHeadWarps][D];
  const int lane = threadIdx.x % 32;
  float* row = rows[threadIdx.x / 32];
  const T* from = p.x + (static_cast<size_t>(token) * p.num_heads + head) * D;
  T* to = p.y + (static_cast<size_t>(head) * num_tokens + token) * D;
  float square = 0;
#pragma unroll
  for (int d = lane; d < D; d += 32) {
    row[d] = to_float(from[d]);
    square += row[d] * row[d];
  }
  float factor = 1;
  if (p.norm != nullptr) factor = rsqrtf(lane_sum<32>(square) / D + p.eps);
#pragma unroll
  for (int d = lane; d < D; d += 32) {
    // Rounded as the plain operation rounds.
    if (p.norm != nullptr) {
      row[d] = to_float(from_float<T>(row[d] * factor * to_float(p.norm[d])));
    }
  }
  __syncwarp();
#pragma unroll
  for (int d = lane; d < D; d += 32) {
    float value = row[d];
    if (ROTATED > 0 && d < ROTATED && p.turns) {
      constexpr int kHalf = ROTATED / 2;
      const int pair = TRADITIONAL ? d / 2 : d % kHalf;
      const int first = TRADITIONAL ? pair * 2 : pair;
      const int second = TRADITIONAL ? pair * 2 + 1 : pair + kHalf;
      const float frequency =
          rope.freqs != nullptr
              ? 1 / rope.freqs[pair]
              : exp2f(-2.0f * pair / ROTATED * log2f(rope.base));
      float sine;
      float cosine;
      sincosf(rope.scale * position * frequency, &sine, &cosine);
      const float a = row[first] * rope.input_scale;
      const float b = row[second] * rope.input_scale;
      value = d == first ? a * cosine - b * sine : a * sine + b * cosine;
    }
    to[d] = from_float<T>(value);
  }
}

// Grid: heads of all projections in groups of kHeadWarps, tokens.
template <class T, int D, int ROTATED, bool TRADITIONAL, int COUNT>
__device__ void norm_rope_heads(const ProjectedHeads<T> (&projections)[COUNT],
                                const HeadRope& rope,
                                const int* positions) {
  int head = blockIdx.x * kHeadWarps + threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (head >= 0 && head < projections[i].num_heads) {
      norm_rope_head<T, D, ROTATED, TRADITIONAL>(projections[i],
                                                 rope,
                                                 head,
                                                 blockIdx.y,
                                                 gridDim.y,
                                                 positions[blockIdx.y]);
    }
    head -= projections[i].num_heads;
  }
}

}  // namespace mlxlm
