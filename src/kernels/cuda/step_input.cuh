// How the input of a product comes into shared memory: normalized, joined from
// attention's shares or as it is, then in a high and a low part, integers or
// for dense weights numbers of their type.
#pragma once

#include "step_stream.cuh"

namespace mlxlm {

constexpr float kStepLog2e = 1.4426950408889634f;

// The experts that work on a token, and how much each counts.
struct StepChoice {
  static constexpr int kMost = 32;
  int experts[kMost];
  float weights[kMost];
};

template <class T, int BITS, int GROUP, bool FLOATS = false>
struct StagedInput {
  static constexpr bool kDense = BITS == 16;
  // Columns whose high parts lie side by side, in front of their low parts.
  static constexpr int kRun = kDense ? 32 : GROUP;
  static constexpr int kPartBytes = kDense ? 2 : 1;
  static constexpr float kLargest = kDense ? 1024 : 32512;  // of a group

  // x of the operation, each group with a factor of its own: as 16-bit
  // integers, whose high and low bytes are apart, in the order in which weights
  // come out of their words; or as sums of two numbers of type T.
  struct Rows {
    unsigned char* x;  // [M][K / kRun][high, low][kRun]
    float2* groups;    // [M][groups]: factor, sum
    float* square;     // [M][kStepWarps]
    int num_groups;
  };

  // The low bytes of four integers.
  static __device__ u32 bytes(int a, int b, int c, int d) {
    return __byte_perm(
        __byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
  }

  // Puts eight values, |x| times the factor <= kLargest, into their places.
  static __device__ void put(const float (&x)[8],
                             float factor,
                             unsigned char* high,
                             unsigned char* low) {
    if constexpr (kDense) {
      put_numbers(x, factor, high, low);
    } else {
      put_integers(x, factor, high, low);
    }
  }

  static __device__ void put_numbers(const float (&x)[8],
                                     float factor,
                                     unsigned char* high,
                                     unsigned char* low) {
    u32 h[4];
    u32 l[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float a = x[2 * j] * factor;
      const float b = x[2 * j + 1] * factor;
      h[j] = Pair<T>::of(a, b);
      const float2 rounded = Pair<T>::floats(h[j]);
      l[j] = Pair<T>::of(a - rounded.x, b - rounded.y);
    }
    *reinterpret_cast<uint4*>(high) = {h[0], h[1], h[2], h[3]};
    *reinterpret_cast<uint4*>(low) = {l[0], l[1], l[2], l[3]};
  }

  static __device__ void put_integers(const float (&x)[8],
                                      float factor,
                                      unsigned char* high,
                                      unsigned char* low) {
    int v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      // Rounds: the integer is in the last bits of 1.5 * 2^23 + it.
      v[j] = __float_as_int(x[j] * factor + 12582912.0f);
    }
    uint2 h;
    uint2 l;
    auto upper = [&](int j) { return (v[j] + 128) >> 8; };
    if constexpr (BITS == 4 && !FLOATS) {
      l = {bytes(v[0], v[2], v[4], v[6]), bytes(v[1], v[3], v[5], v[7])};
      h = {bytes(upper(0), upper(2), upper(4), upper(6)),
           bytes(upper(1), upper(3), upper(5), upper(7))};
    } else {
      l = {bytes(v[0], v[1], v[2], v[3]), bytes(v[4], v[5], v[6], v[7])};
      h = {bytes(upper(0), upper(1), upper(2), upper(3)),
           bytes(upper(4), upper(5), upper(6), upper(7))};
    }
    *reinterpret_cast<uint2*>(high) = h;
    *reinterpret_cast<uint2*>(low) = l;
  }

  static __device__ void unpack(const uint4& from, float (&x)[8]) {
    const u32 words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = Pair<T>::floats(words[j]);
      x[2 * j] = pair.x, x[2 * j + 1] = pair.y;
    }
  }

  // Sources of a row of the input. Each reads eight values from k on in two
  // parts, so that reads of several wait together; finish() returns the sum of
  // their squares.
  struct Hidden {
    struct Read {
      uint4 raw;
    };
    const T* from;

    __device__ void start(int k, Read& read) const {
      read.raw = __ldcg(reinterpret_cast<const uint4*>(from + k));
    }
    __device__ float finish(int, const Read& read, float (&x)[8]) const {
      unpack(read.raw, x);
      return 0;
    }
  };

  // The hidden numbers of the chosen experts, one after the other.
  struct Chosen {
    using Read = typename Hidden::Read;
    Hidden hidden;
    const StepChoice& choice;
    int expert_size;

    __device__ void start(int k, Read& read) const { hidden.start(k, read); }
    __device__ float finish(int k, const Read& read, float (&x)[8]) const {
      hidden.finish(k, read, x);
      const float weight = choice.weights[k / expert_size];
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] *= weight;
      return 0;
    }
  };

  // The state times the norm's weight, whose division waits for the results.
  struct State {
    struct Read {
      float4 a, b;
      uint4 norm;
    };
    const float* from;
    const T* norm;

    __device__ void start(int k, Read& read) const {
      read.a = __ldcg(reinterpret_cast<const float4*>(from + k));
      read.b = __ldcg(reinterpret_cast<const float4*>(from + k) + 1);
      read.norm = *reinterpret_cast<const uint4*>(norm + k);
    }
    __device__ float finish(int, const Read& read, float (&x)[8]) const {
      const float state[8] = {read.a.x,
                              read.a.y,
                              read.a.z,
                              read.a.w,
                              read.b.x,
                              read.b.y,
                              read.b.z,
                              read.b.w};
      unpack(read.norm, x);
      float square = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        square += state[j] * state[j];
        x[j] *= state[j];
      }
      return square;
    }
  };

  // Attention's answers for each share of the keys, [H, shares, D + 8]: behind
  // each its weight, a float32 power of two. All blocks read them at a time,
  // and weights side by side would be one place that all wait for.
  template <int D>
  struct Shares {
    static constexpr int kMost = 8;  // at a time
    static constexpr int kStride = D + 8;
    struct Read {
      float weights[kMost];
      uint4 answers[kMost];
    };
    const T* answers;
    const float* sinks;  // [H], or null
    int count;

    __device__ void read(int k, int first, Read& read) const {
      const int head = k / D;
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        const T* from =
            answers + static_cast<size_t>(head * count + first + i) * kStride;
        read.weights[i] = -1e30f;
        read.answers[i] = {0, 0, 0, 0};
        if (first + i >= count) continue;
        read.weights[i] = __ldcg(reinterpret_cast<const float*>(from + D));
        read.answers[i] = __ldcg(reinterpret_cast<const uint4*>(from + k % D));
      }
    }
    __device__ void start(int k, Read& r) const { read(k, 0, r); }

    __device__ float finish(int k, Read& r, float (&x)[8]) const {
      float highest = -1e30f;
      float total = 0;
      if (sinks != nullptr) highest = sinks[k / D] * kStepLog2e, total = 1;
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = 0;
      for (int first = 0; first < count; first += kMost) {
        if (first > 0) read(k, first, r);
        float now = highest;
#pragma unroll
        for (int i = 0; i < kMost; ++i) now = fmaxf(now, r.weights[i]);
        const float factor = exp2f(highest - now);
        highest = now;
        total *= factor;
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] *= factor;
#pragma unroll
        for (int i = 0; i < kMost; ++i) {
          const float weight = exp2f(r.weights[i] - now);
          total += weight;
          float part[8];
          unpack(r.answers[i], part);
#pragma unroll
          for (int j = 0; j < 8; ++j) x[j] += weight * part[j];
        }
      }
      const float factor = 1 / total;
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] *= factor;
      return 0;
    }
  };

  // Puts the only row of the input into shared memory. Its squares are added up
  // per warp.
  template <int AT_A_TIME, class Source>
  static __device__ void take_row(const Source& source,
                                  int size,
                                  const Rows& rows) {
    constexpr int kPass = kStepThreads * 8;
    float squares = 0;
    const int lane_at = threadIdx.x % 32 * 8;
    // Whole warps, for the sums of groups.
    for (int base = threadIdx.x * 8; base - lane_at < size;
         base += AT_A_TIME * kPass) {
      typename Source::Read reads[AT_A_TIME];
#pragma unroll
      for (int i = 0; i < AT_A_TIME; ++i) {
        source.start(min(base + i * kPass, size - 8), reads[i]);
      }
#pragma unroll
      for (int i = 0; i < AT_A_TIME; ++i) {
        const int k = base + i * kPass;
        float x[8];
        const float square = source.finish(min(k, size - 8), reads[i], x);
        if (k < size) squares += square;
        put_groups(x, 0, k, size, rows);
      }
    }
    leave_squares(squares, 0, rows);
  }

  // Puts rows of the input, several at most, into shared memory; source_of(m)
  // is where row m comes from. Rows' passes follow each other, so that reads of
  // several rows wait together.
  template <int AT_A_TIME, class SourceOf>
  static __device__ void take_rows(const SourceOf& source_of,
                                   int num_rows,
                                   int size,
                                   const Rows& rows) {
    constexpr int kPass = kStepThreads * 8;
    const int passes = (size + kPass - 1) / kPass;  // of a row
    const int end = num_rows * passes;
    auto place_of = [&](int pass) {
      return threadIdx.x * 8 + pass % passes * kPass;
    };
    float squares = 0;
    for (int begin = 0; begin < end; begin += AT_A_TIME) {
      typename decltype(source_of(0))::Read reads[AT_A_TIME];
#pragma unroll
      for (int i = 0; i < AT_A_TIME; ++i) {
        const int pass = min(begin + i, end - 1);
        source_of(pass / passes).start(min(place_of(pass), size - 8), reads[i]);
      }
#pragma unroll
      for (int i = 0; i < AT_A_TIME; ++i) {
        const int pass = begin + i;
        if (pass >= end) break;
        const int m = pass / passes;
        const int k = place_of(pass);
        float x[8];
        const float square = source_of(m).finish(min(k, size - 8), reads[i], x);
        if (k < size) squares += square;
        put_groups(x, m, k, size, rows);
        if (k >= (passes - 1) * kPass) {
          leave_squares(squares, m, rows);
          squares = 0;
        }
      }
    }
  }

  static __device__ void leave_squares(float squares, int m, const Rows& rows) {
    squares = lane_sum<32>(squares);
    if (threadIdx.x % 32 == 0) {
      rows.square[m * kStepWarps + threadIdx.x / 32] = squares;
    }
  }

  // Puts values k to k + 7 of row m into their places, where there are some;
  // all lanes of a warp have neighbouring ones.
  static __device__ void put_groups(
      const float (&x)[8], int m, int k, int size, const Rows& rows) {
    float sum = 0;
    float most = 1e-30f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      sum += x[j];
      most = fmaxf(most, fabsf(x[j]));
    }
    sum = lane_sum<GROUP / 8>(sum);
    most = lane_max<GROUP / 8>(most);
    if (k >= size) return;
    const int group = m * rows.num_groups + k / GROUP;
    if (k % GROUP == 0) rows.groups[group] = {most / kLargest, sum};
    unsigned char* to =
        rows.x + (group * 2 * GROUP + k % GROUP / kRun * 2 * kRun + k % kRun) *
                     kPartBytes;
    put(x, kLargest / most, to, to + kRun * kPartBytes);
  }
};

}  // namespace mlxlm
