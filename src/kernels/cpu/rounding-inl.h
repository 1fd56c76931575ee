// Activations rounded to integers of 16 or 8 bits, with a step for some columns
// (IntegerTile), in the order in which integer-inl.h multiplies them.
#pragma once

#include "kernels/cpu/matmul-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

typedef std::int8_t Bytes __attribute__((vector_size(kLanes), may_alias));
typedef std::int16_t HalfShorts
    __attribute__((vector_size(2 * kLanes), may_alias));

static inline Floats magnitude(Floats v) {
  return floats_of(bits_of(v) & 0x7fffffffu);
}

// Row m of a tile from columns [first, first + group_size) of x; returns the
// sum of the integers.
static float round_group(const float* x,
                         float inverse,
                         int first,
                         int group_size,
                         int tile_rows,
                         int m,
                         int planes,
                         std::size_t plane,
                         std::uint32_t* quads) {
  constexpr int kQuads = kLanes / 4;
  const Floats rounding = splat(12582912.0f);  // 1.5 * 2^23
  Floats sum = {};
  for (int c = first; c < first + group_size; c += kLanes) {
    const Floats whole = (load(x + c) * inverse + rounding) - rounding;
    sum += whole;
    const Ints n = __builtin_convertvector(whole, Ints);
    if (has_pairs(tile_rows, planes)) {
      const HalfShorts shorts = __builtin_convertvector(n, HalfShorts);
      std::uint64_t fours[kQuads];
      std::memcpy(fours, &shorts, sizeof(fours));
      std::uint32_t* to =
          quads + static_cast<std::size_t>(c / 2) * tile_rows + m;
      for (std::uint64_t four : fours) {
        // Columns 0 and 2, then 1 and 3.
        *to = (four & 0xffffu) | (four >> 16 & 0xffff0000u);
        to += tile_rows;
        *to = (four >> 16 & 0xffffu) | (four >> 32 & 0xffff0000u);
        to += tile_rows;
      }
      continue;
    }
    auto put = [&](Ints values, std::uint32_t* to) {
      const Bytes bytes = __builtin_convertvector(values, Bytes);
      std::uint32_t four[kQuads];
      std::memcpy(four, &bytes, sizeof(four));
      for (int i = 0; i < kQuads; ++i) {
        to[static_cast<std::size_t>(c / 4 + i) * tile_rows + m] = four[i];
      }
    };
    if (planes == 1) {
      put(n, quads);
    } else {
      const Ints high = (n + 128) >> 8;
      put(high, quads);
      put(n - (high << 8), quads + plane);
    }
  }
  return sum_of(sum);
}

static void round_rows(const float* x,
                       const PanelMatrix& w,
                       const IntegerTile& tile,
                       std::uint32_t* quads,
                       float* steps,
                       std::int32_t* starts,
                       float* sums) {
  const int columns = w.num_columns;
  const int rows = tile.rows;
  const float most_steps = tile.planes == 2 ? 127.0f * 256.0f : 127.0f;
  const int together = step_columns(tile.planes, w.group_size);
  const int middle = 1 << (element_bits(w.format) - 1);
  const std::size_t plane = static_cast<std::size_t>(columns / 4) * rows;
  for (int m = tile.num_rows; m < rows; ++m) {
    for (int s = 0; s * together < columns; ++s) steps[s * rows + m] = 0.0f;
    for (int g = 0; g < columns / w.group_size; ++g) {
      starts[g * rows + m] = 0;
      sums[g * rows + m] = 0.0f;
    }
    for (std::size_t i = 0; i < plane * tile.planes; i += rows) {
      quads[i + m] = 0;
    }
  }
  for (int m = 0; m < tile.num_rows; ++m) {
    const float* row = x + static_cast<std::size_t>(m) * columns;
    int g = m;
    for (int c = 0, s = m; c < columns; s += rows) {
      const int end = columns - c < together ? columns : c + together;
      Floats most = {};
      for (int i = c; i < end; i += kLanes) {
        most = maximum(most, magnitude(load(row + i)));
      }
      const float largest = largest_of(most);
      // The inverse of a smaller one would overflow.
      const float inverse = largest > 1e-30f ? most_steps / largest : 0.0f;
      steps[s] = largest / most_steps;
      for (; c < end; c += w.group_size, g += rows) {
        sums[g] = round_group(
            row, inverse, c, w.group_size, rows, m, tile.planes, plane, quads);
        starts[g] = -middle * static_cast<std::int32_t>(sums[g]);
      }
    }
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
