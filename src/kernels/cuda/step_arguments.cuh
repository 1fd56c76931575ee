// What a step kernel is called with.
#pragma once

#include "step_attention.cuh"
#include "step_ranks.cuh"

namespace mlxlm {

// What a step works on: M rows at most, each one token of a sequence of its
// own.
template <class T, int M = 1, int RANKS = 1>
struct StepArguments {
  const StepOperation<T>* operations;
  int num_operations;
  const StepKeys<T>* caches;  // [layers, M]
  const int* tokens;          // [num_rows]
  const int* positions;       // [num_rows]
  int num_rows;
  int num_heads;
  int num_kv_heads;
  int size;         // of the state
  int hidden_size;  // of the MLP
  int vocabulary_size;
  float* logits;  // [M, V]; of several ranks' parts: [ranks, V]
  unsigned long long* barrier;
  const float* frequencies;  // of the rope: [rotated / 2]
  float* state;              // [M, size]
  float* heads;              // [M, (H + 2 Hkv) D]
  T* answers;                // of attention: [M, H, shares, D + 8]
  T* hidden;                 // [M, hidden_size]
  StepMail<RANKS> mail;
#ifdef MLXLM_STEP_TRACE
  long long* trace;  // [blocks][operations][4]: nanoseconds
#endif

  __device__ int rows() const { return M == 1 ? 1 : num_rows; }
};

#ifdef MLXLM_STEP_TRACE
#define MLXLM_TRACE(i, what) trace(a, i, what)
template <class Arguments>
__device__ void trace(const Arguments& a, int i, int what) {
  if (threadIdx.x != 0) return;
  long long now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  a.trace[(static_cast<size_t>(blockIdx.x) * a.num_operations + i) * 4 + what] =
      now;
}
#else
#define MLXLM_TRACE(i, what)
#endif

}  // namespace mlxlm
