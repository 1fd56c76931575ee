// Rows of keys and values in all forms in which caches keep them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/elementwise-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

// Of float, or the bits of halves.
template <class T>
struct PlainRows {
  const T* data;
  std::ptrdiff_t stride;

  PlainRows(const T* data, std::ptrdiff_t stride)
      : data(data), stride(stride) {}
  PlainRows(const HeadRows& rows, int first)
      : data(static_cast<const T*>(rows.data) + first * rows.stride),
        stride(rows.stride) {}
  const T* operator[](std::ptrdiff_t i) const { return data + i * stride; }
};

// Numbers of kBits, of which words hold whole ones, or for 0 of `bits`.
template <int kBits>
struct QuantizedRow {
  const std::uint32_t* words;
  const float* scales;
  const float* zeros;
  int group_shift;
  int bits;
};

template <int kBits>
struct QuantizedRows {
  HeadRows rows;
  int first;

  QuantizedRows(const HeadRows& rows, int first) : rows(rows), first(first) {}
  QuantizedRow<kBits> operator[](std::ptrdiff_t i) const {
    i += first;
    return {static_cast<const std::uint32_t*>(rows.data) + i * rows.stride,
            rows.scales + i * rows.scale_stride,
            rows.zeros + i * rows.zero_stride,
            rows.group_shift,
            rows.bits};
  }
};

// kLanes numbers from the i-th on, a multiple of kLanes.
template <int kBits, int... lane>
static inline Words numbers_at(const QuantizedRow<kBits>& row,
                               int i,
                               std::integer_sequence<int, lane...>) {
  constexpr int kPerWord = 32 / kBits;
  const std::uint32_t* words = row.words + i / kPerWord;
  if constexpr (kBits == 8) {
    // In two steps, or GCC converts one by one.
    std::uint8_t bytes __attribute__((vector_size(kLanes)));
    std::memcpy(&bytes, words, sizeof(bytes));
    return __builtin_convertvector(__builtin_convertvector(bytes, Halves),
                                   Words);
  } else {
    std::uint64_t two = *words;
    if constexpr (kLanes > kPerWord) std::memcpy(&two, words, sizeof(two));
    typedef std::uint64_t Pairs __attribute__((vector_size(4 * kLanes)));
    const auto pairs = (Words)(two - Pairs{});
    constexpr Words kShifts = {(lane % kPerWord * kBits)...};
    const Words v = __builtin_shufflevector(pairs, pairs, (lane / kPerWord)...);
    return (v >> (kShifts + i % kPerWord * kBits)) & ((1u << kBits) - 1);
  }
}

template <int... lane>
static inline Words numbers_at(const QuantizedRow<0>& row,
                               int i,
                               std::integer_sequence<int, lane...>) {
  Words numbers = {};
  for (int j = 0; j < kLanes; ++j) {
    const int bit = (i + j) * row.bits;
    std::uint64_t two = row.words[bit / 32];
    if (bit % 32 + row.bits > 32) {
      two |= static_cast<std::uint64_t>(row.words[bit / 32 + 1]) << 32;
    }
    numbers[j] = two >> (bit % 32) & ((1u << row.bits) - 1);
  }
  return numbers;
}

// Elements [d, d + count) of a row, zeros behind them; d is a multiple of
// kLanes.
static inline Floats load_at(const float* row, int d, int count) {
  return load_some(row + d, count);
}

static inline Floats load_at(const std::uint16_t* row, int d, int count) {
  if (count == kLanes) return load_f16(row + d);
  std::uint16_t rest[kLanes] = {};
  std::memcpy(rest, row + d, count * sizeof(*row));
  return load_f16(rest);
}

// Of whole groups, which are whole vectors.
template <int kBits>
static inline __attribute__((always_inline)) Floats load_at(
    const QuantizedRow<kBits>& row, int d, int /*count*/) {
  const int group = d >> row.group_shift;
  const Words numbers =
      numbers_at(row, d, std::make_integer_sequence<int, kLanes>{});
  return multiply_add(__builtin_convertvector((Ints)numbers, Floats),
                      splat(row.scales[group]),
                      splat(row.zeros[group]));
}

// Calls f with the rows from `first` on, if they are of one of the forms that
// few queries read where they lie: each is code of its own.
template <class F>
static inline bool with_common_rows(const HeadRows& rows,
                                    int first,
                                    const F& f) {
  if (rows.bits == 32) {
    f(PlainRows<float>(rows, first));
  } else if (rows.bits == 16) {
    f(PlainRows<std::uint16_t>(rows, first));
  } else if (rows.bits == 8) {
    f(QuantizedRows<8>(rows, first));
  } else if (rows.bits == 4) {
    f(QuantizedRows<4>(rows, first));
  } else {
    return false;
  }
  return true;
}

// Likewise, of any form.
template <class F>
static inline void with_rows(const HeadRows& rows, int first, const F& f) {
  if (with_common_rows(rows, first, f)) return;
  if (rows.bits == 2) return f(QuantizedRows<2>(rows, first));
  f(QuantizedRows<0>(rows, first));
}

// Where rows of `size` elements lie.
struct RowBytes {
  const std::byte* data;
  std::ptrdiff_t stride;
  int size;

  RowBytes(const HeadRows& rows, int first, int size)
      : stride(rows.stride * (rows.bits == 16 ? 2 : 4)),
        size(size * rows.bits / 8) {
    data = static_cast<const std::byte*>(rows.data) + first * stride;
  }

  inline __attribute__((always_inline)) void ask_for(std::ptrdiff_t i) const {
    constexpr int kLineBytes = 64;
    const std::byte* row = data + i * stride;
    for (int b = 0; b < size; b += kLineBytes) prefetch(row + b);
  }
};

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
