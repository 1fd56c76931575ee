// How the ranks of one model, each on a GPU of its own, put together what each
// has a part of. A number goes to all of them as soon as it is there, in one
// word with a stamp that tells it from what the place had before; whoever needs
// it waits for that word. So nobody waits for more than it reads, and no fence
// is needed.
#pragma once

#include "step_stream.cuh"

namespace mlxlm {

using Word = unsigned long long;

template <int RANKS>
struct StepMail {
  // A minute or more: longer than another rank takes to compile its kernel.
  static constexpr long long kMostClocks = 120'000'000'000;

  // Of each rank, on its GPU: [2][RANKS][size], for o and down in turn, so that
  // what is sent next doesn't fall on what is still being read; then
  // [RANKS][vocabulary].
  Word* const* boxes;
  int rank;          // this one
  bool splits_head;  // each has a part of the vocabulary

  __device__ void send(size_t at, float value, u32 stamp) const {
    const Word word = static_cast<Word>(stamp) << 32 | __float_as_uint(value);
#pragma unroll
    for (int r = 0; r < RANKS; ++r) {
      asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(boxes[r] + at),
                   "l"(word)
                   : "memory");
    }
  }

  __device__ Word read(size_t at) const {
    Word word;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];"
                 : "=l"(word)
                 : "l"(boxes[rank] + at)
                 : "memory");
    return word;
  }

  // The number that comes with the stamp; `word` has been read there.
  __device__ float wait(size_t at, Word word, u32 stamp) const {
    const long long begin = clock64();
    while (static_cast<u32>(word >> 32) != stamp) {
      if (clock64() - begin > kMostClocks) asm volatile("trap;");
      word = read(at);
    }
    return __uint_as_float(static_cast<u32>(word));
  }
};

}  // namespace mlxlm
