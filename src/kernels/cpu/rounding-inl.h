// Activations rounded to integers of 16 or 8 bits, with a step for some columns
// (IntegerTile), in the order in which integer-inl.h multiplies them.
#pragma once

#include "kernels/cpu/integer-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

typedef std::int8_t Bytes __attribute__((vector_size(kLanes), may_alias));

// Columns of a tile whose integers are put side by side at a time: whole steps.
inline constexpr int kColumnsAtOnce = 128;

static inline void store_bytes(Ints n, std::byte* to) {
  const Bytes bytes = __builtin_convertvector(n, Bytes);
  std::memcpy(to, &bytes, sizeof(bytes));
}

// Of each four columns 0 and 2 in a word, then 1 and 3.
template <int... i>
static inline void store_pairs(Ints n,
                               std::byte* to,
                               std::integer_sequence<int, i...>) {
  const Words others = bits_of(swap_lanes<2>(floats_of((Words)n)));
  const Words words = ((Words)n & 0xffffu) | (others << 16);
  const auto pairs =
      __builtin_shufflevector(words, words, (i / 2 * 4 + i % 2)...);
  std::memcpy(to, &pairs, sizeof(pairs));
}

static inline float largest_magnitude(const float* x, int columns) {
  Floats most = {};
  for (int c = 0; c < columns; c += kLanes) {
    most = maximum(most, floats_of(bits_of(load(x + c)) & 0x7fffffffu));
  }
  return largest_of(most);
}

// The integers of one row, as a tile of one row has them.
template <int kPlanes, bool kPairs>
struct RoundedColumns {
  static constexpr int kBytes = kPairs ? 2 : 1;  // of a column in a plane

  std::byte* planes[kPairs ? 1 : kPlanes];  // the high bytes', the low ones'

  // Columns [c, c + columns) become those of x; returns their sum.
  float round(const float* x, float inverse, int c, int columns) const {
    const Floats rounding = splat(12582912.0f);  // 1.5 * 2^23
    Floats sum = {};
    for (int i = 0; i < columns; i += kLanes) {
      const Floats whole = (load(x + i) * inverse + rounding) - rounding;
      sum += whole;
      const Ints n = __builtin_convertvector(whole, Ints);
      std::byte* to = planes[0] + (c + i) * kBytes;
      if constexpr (kPairs) {
        store_pairs(n, to, std::make_integer_sequence<int, kLanes / 2>{});
      } else if constexpr (kPlanes == 1) {
        store_bytes(n, to);
      } else {
        store_bytes((n + 128) >> 8, to);
        store_bytes(n, planes[1] + c + i);  // what is left, for it wraps around
      }
    }
    return sum_of(sum);
  }
};

template <int kPlanes, bool kPairs>
static void round_tile(const float* x,
                       const PanelMatrix& w,
                       const IntegerTile& tile,
                       std::uint32_t* quads,
                       float* steps,
                       std::int32_t* starts,
                       float* sums) {
  using Rounded = RoundedColumns<kPlanes, kPairs>;
  constexpr float kMostSteps = kPlanes == 2 ? 127.0f * 256.0f : 127.0f;
  constexpr int kColumnsPerWord = 4 / Rounded::kBytes;
  constexpr int kWords = kColumnsAtOnce / kColumnsPerWord;
  constexpr int kCount = sizeof(Rounded::planes) / sizeof(std::byte*);
  const int columns = w.num_columns;
  const int rows = tile.rows;
  const int together = step_columns(kPlanes, w.group_size);
  const int middle = element_middle(w.format);
  const std::size_t plane = static_cast<std::size_t>(columns / 4) * rows;
  std::uint32_t words[kCount][kMaxIntegerRows][kWords];
  for (int first = 0; first < columns; first += kColumnsAtOnce) {
    const int left = columns - first;
    const int count = left < kColumnsAtOnce ? left : kColumnsAtOnce;
    std::uint32_t* to = quads + first / kColumnsPerWord * rows;
    for (int m = 0; m < tile.num_rows; ++m) {
      const float* row = x + static_cast<std::size_t>(m) * columns + first;
      Rounded rounded;
      for (int i = 0; i < kCount; ++i) {
        rounded.planes[i] = reinterpret_cast<std::byte*>(
            rows == 1 ? to + i * plane : words[i][m]);
      }
      for (int c = 0; c < count;) {
        const int end = count - c < together ? count : c + together;
        const float largest = largest_magnitude(row + c, end - c);
        // The inverse of a smaller one would overflow.
        const float inverse = largest > 1e-30f ? kMostSteps / largest : 0.0f;
        steps[(first + c) / together * rows + m] = largest / kMostSteps;
        for (; c < end; c += w.group_size) {
          const int g = (first + c) / w.group_size * rows + m;
          sums[g] = rounded.round(row + c, inverse, c, w.group_size);
          starts[g] = -middle * static_cast<std::int32_t>(sums[g]);
        }
      }
    }
    if (rows == 1) continue;
    for (int i = 0; i < kCount; ++i) {
      interleave_rows(tile.num_rows,
                      rows,
                      count / kColumnsPerWord,
                      reinterpret_cast<float*>(to + i * plane),
                      [&](int m, int c, int some) {
                        return load_some(
                            reinterpret_cast<float*>(words[i][m]) + c, some);
                      });
    }
  }
}

static void round_rows(const float* x,
                       const PanelMatrix& w,
                       const IntegerTile& tile,
                       std::uint32_t* quads,
                       float* steps,
                       std::int32_t* starts,
                       float* sums) {
  const int rows = tile.rows;
  for (int m = tile.num_rows; m < rows; ++m) {
    for (int c = 0; c < w.num_columns; c += w.group_size) {
      const int g = c / w.group_size * rows + m;
      starts[g] = 0;
      sums[g] = 0.0f;
      steps[c / step_columns(tile.planes, w.group_size) * rows + m] = 0.0f;
    }
  }
  const auto run = tile.planes == 1     ? round_tile<1, false>
                   : has_pairs(rows, 2) ? round_tile<2, true>
                                        : round_tile<2, false>;
  run(x, w, tile, quads, steps, starts, sums);
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
