// What a step kernel is made of below its operations: weights that one warp
// keeps streaming into shared memory, whatever the others wait for, and a
// barrier over all blocks.
#pragma once

#include "async.cuh"

namespace mlxlm {

// Warps of a block: those that compute, one that finishes results, and those
// that load weights.
constexpr int kStepWarps = 8;
constexpr int kStepThreads = kStepWarps * 32;
constexpr int kResultThreads = 32;
constexpr int kLoadWarps = 2;
constexpr int kLoadThreads = kLoadWarps * 32;
constexpr int kBlockThreads = kStepThreads + kResultThreads + kLoadThreads;

// Ends a stage's copies and waits until all but the last two stages are there:
// more requests than memory works on delay what blocks tell each other.
__device__ inline void end_stage() {
  asm volatile("cp.async.commit_group;\n cp.async.wait_group 2;" ::: "memory");
}
// Arrives once all that this thread copied is there.
__device__ inline void arrive_when_copied(unsigned long long* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(
                   shared_address(barrier))
               : "memory");
}
// An object on its way into shared memory: a part in a register of each thread.
template <class Object>
struct Fetch {
  static_assert(sizeof(Object) % 16 == 0);
  uint4 part;

  __device__ void start(const Object* from, int thread) {
    if (thread < static_cast<int>(sizeof(Object) / 16)) {
      part = reinterpret_cast<const uint4*>(from)[thread];
    }
  }
  // Others see it after the next barrier.
  __device__ void finish(Object* to, int thread) const {
    if (thread < static_cast<int>(sizeof(Object) / 16)) {
      reinterpret_cast<uint4*>(to)[thread] = part;
    }
  }
};

// Brings a line into the second cache level.
__device__ inline void prefetch(const void* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

// Of the computing warps alone.
__device__ inline void step_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kStepThreads) : "memory");
}

// Of the loading warps alone.
__device__ inline void load_sync() {
  asm volatile("bar.sync 2, %0;" ::"n"(kLoadThreads) : "memory");
}

// Of the computing warps and the one that finishes.
__device__ inline void operation_sync() {
  asm volatile("bar.sync 3, %0;" ::"n"(kStepThreads + kResultThreads)
               : "memory");
}

// Where one thread of each block waits until all are there; what their blocks
// wrote before is then seen by reads past the first cache level (__ldcg).
// Nobody asks for the count that it adds to: a question less on the way.
struct GridBarrier {
  unsigned long long* count;  // of arrivals, only grows
  unsigned long long target;  // what it was when all were there the last time

  // Before this block's first arrival no round of this kernel is complete.
  __device__ explicit GridBarrier(unsigned long long* count) : count(count) {
    target = now() / gridDim.x * gridDim.x;
  }

  __device__ unsigned long long now() const {
    unsigned long long now;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];"
                 : "=l"(now)
                 : "l"(count)
                 : "memory");
    return now;
  }

  __device__ void arrive() {
    target += gridDim.x;
    asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(count)
                 : "memory");
  }
  __device__ void wait_for_all() const {
    while (now() < target) {
    }
  }
  __device__ void wait() {
    arrive();
    wait_for_all();
  }
};

// A part of the weights as it lies in shared memory: 16 rows by kRowBytes, and
// their groups' scales and zeros, if they are quantized. Rows are padded so
// that the lanes of a load meet different banks. BITS: 4, 8, or 16 for weights
// of type T. FLOATS: of 4 bits, whose scales are bytes.
template <int BITS, int GROUP, bool FLOATS>
struct StreamStage {
  static constexpr bool kDense = BITS == 16;
  static constexpr int kRowBytes = 1024;
  static constexpr int kColumns = kRowBytes * 8 / BITS;
  static constexpr int kGroups = kColumns / GROUP;
  static constexpr int kGroupBytes = GROUP * BITS / 8;
  static constexpr int kRowStride =
      kRowBytes + (kDense                                   ? 64
                   : kGroupBytes >= 16 && kGroupBytes <= 64 ? kGroupBytes
                                                            : 16);
  static constexpr bool kHasZeros = !kDense && !FLOATS;
  static constexpr int kScaleBytes = FLOATS ? 1 : 2;
  static constexpr int kScaleStride = kDense ? 1 : kGroups * kScaleBytes + 16;

  alignas(16) unsigned char words[16 * kRowStride];
  unsigned char scales[16 * kScaleStride];
  unsigned char zeros[kHasZeros ? 16 * kScaleStride : 16];
};

// The stages in turn. The loading warp fills them in the order in which the
// others use them.
template <class Stage, int COUNT>
struct StreamRing {
  Stage stages[COUNT];
  unsigned long long full[COUNT];
  unsigned long long free[COUNT];
};

struct RingPlace {
  int index = 0;
  u32 parity = 0;
  template <int COUNT>
  __device__ void advance() {
    if (++index == COUNT) index = 0, parity ^= 1;
  }
};

}  // namespace mlxlm
