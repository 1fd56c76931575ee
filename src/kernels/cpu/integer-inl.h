// Products of integer weights with activations that are rounded to integers of
// 16 or 8 bits (rounding-inl.h). Sums within a group are exact; every
// instruction set has the same.
#pragma once

#include "kernels/cpu/matmul-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

typedef std::int16_t Shorts __attribute__((vector_size(4 * kLanes), may_alias));
typedef std::uint16_t UnsignedShorts
    __attribute__((vector_size(4 * kLanes), may_alias));

// Sums and totals of the largest tile fit the registers.
inline constexpr int kMaxIntegerRows = kHas32Registers ? 8 : 4;

// Rows from which integers of 16 bits are multiplied as such, in pairs, instead
// of byte by byte. Pairs cost half as many products, but twice the work of
// taking weights apart, which only many rows make up for where a product takes
// four bytes.
#if defined(__AVX512VNNI__)
inline constexpr int kLeastPairRows = 8;
#elif defined(__ARM_FEATURE_DOTPROD)  // which has products of bytes only
inline constexpr int kLeastPairRows = kMaxIntegerRows + 1;
#else
inline constexpr int kLeastPairRows = 1;
#endif

static constexpr bool has_pairs(int tile_rows, int planes) {
  return planes == 2 && tile_rows >= kLeastPairRows;
}

// sum[i] + the products of the four bytes of weights[i] (unsigned, below
// 2^kBits) with the four of *x (signed). Assembly for what compilers don't do:
// they load and repeat *x by an instruction of its own.
template <int kBits>
static inline Ints add_byte_products(Ints sum,
                                     Words weights,
                                     const std::uint32_t* x) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*x));
  return sum;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  return (Ints)vusdotq_s32((int32x4_t)sum,
                           (uint8x16_t)weights,
                           vreinterpretq_s8_u32(vdupq_n_u32(*x)));
#elif defined(__ARM_FEATURE_DOTPROD)
  // Products of signed bytes: 128 is taken from larger weights, and added again
  // in two halves.
  const int8x16_t four = vreinterpretq_s8_u32(vdupq_n_u32(*x));
  if constexpr (kBits == 8) {
    sum = (Ints)vdotq_s32(
        (int32x4_t)sum, (int8x16_t)(weights ^ 0x80808080u), four);
    sum = (Ints)vdotq_s32((int32x4_t)sum, vdupq_n_s8(64), four);
    return (Ints)vdotq_s32((int32x4_t)sum, vdupq_n_s8(64), four);
  }
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, four);
#elif defined(__AVX2__)
  // As pairs of 16 bits, even bytes and odd ones: these sums can't overflow.
  const Shorts both = (Shorts)(Words{} + *x);
  const Shorts x_even = (both << 8) >> 8;
  const Shorts x_odd = both >> 8;
  const Words even = weights & 0x00ff00ffu;
  const Words odd = (weights >> 8) & 0x00ff00ffu;
#if defined(__AVX512BW__)
  sum += (Ints)_mm512_madd_epi16((__m512i)even, (__m512i)x_even);
  return sum + (Ints)_mm512_madd_epi16((__m512i)odd, (__m512i)x_odd);
#else
  sum += (Ints)_mm256_madd_epi16((__m256i)even, (__m256i)x_even);
  return sum + (Ints)_mm256_madd_epi16((__m256i)odd, (__m256i)x_odd);
#endif
#else
  for (int shift = 0; shift < 32; shift += 8) {
    const auto byte = static_cast<std::int8_t>(*x >> shift);
    sum += (Ints)((weights >> shift) & 0xffu) * static_cast<int>(byte);
  }
  return sum;
#endif
}

// sum[i] + the products of the two 16-bit numbers of weights[i] with the two of
// *x (signed).
static inline Ints add_pair_products(Ints sum,
                                     Words weights,
                                     const std::uint32_t* x) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*x));
  return sum;
#elif defined(__AVX512BW__)
  return sum +
         (Ints)_mm512_madd_epi16((__m512i)weights, (__m512i)(Words{} + *x));
#elif defined(__AVX2__)
  return sum +
         (Ints)_mm256_madd_epi16((__m256i)weights, (__m256i)(Words{} + *x));
#else
  const int low = static_cast<std::int16_t>(*x);
  const int high = static_cast<std::int16_t>(*x >> 16);
  return sum + (Ints)(weights & 0xffffu) * low + (Ints)(weights >> 16) * high;
#endif
}

// A group's scales and offsets: an element q stands for
// scale * (q - middle) + offset.
template <ElementFormat kFormat>
struct GroupScales {
  Floats scale;
  Floats offset;

  GroupScales(const PanelMatrix& w, const std::byte* p) {
    constexpr float kMiddle = element_middle(kFormat);
    const int bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
    scale = load_scales(w.scale_format, p) * Element<kFormat>::kUnit;
    offset =
        w.has_zeros
            ? multiply_add(scale,
                           splat(kMiddle),
                           load_scales(w.scale_format, p + kPanelRows * bytes))
            : Floats{};
  }
};

// Calls f.template operator()<step>(vector) with the vectors that are taken
// from a block's words, 16 rows of them from p on: of bytes, of four columns
// each, or of pairs, of two.
template <ElementFormat kFormat, bool kPairs, class F>
static inline __attribute__((always_inline)) void take_apart(const std::byte* p,
                                                             F&& f) {
  using E = Element<kFormat>;
  Words words[E::kWords];
  unroll<E::kWords>([&]<int k>() __attribute__((always_inline)) {
    words[k] = load_words(p + k * kPanelRows * 4);
    prefetch(p + k * kPanelRows * 4 + kAheadBytes);
  });
  unroll<E::kColumns / 4>([&]<int e>() __attribute__((always_inline)) {
    const Words bytes = E::template bytes<e>(words);
    if constexpr (kPairs) {
      f.template operator()<2 * e>(bytes & 0x00ff00ffu);
      f.template operator()<2 * e + 1>((Words)((UnsignedShorts)bytes >> 8));
    } else {
      f.template operator()<e>(bytes);
    }
  });
}

// The sums of one group of columns. Lambdas here and below are inlined by
// force: GCC made functions of some, with the sums in memory.
template <int kBits, int kRows, int kPlanes>
struct GroupSums {
  static constexpr bool kPairs = has_pairs(kRows, kPlanes);
  // Enough independent sums to hide the latency.
  static constexpr int kChains = kRows > 1 ? 1 : kPairs ? 2 : 8 / kBits;

  Ints sum[kRows][kChains] = {};  // of pairs, the only plane, or the high one
  Ints low[kRows][kChains] = {};

  explicit GroupSums(const std::int32_t* starts) {
    unroll<kRows>([&]<int m>() __attribute__((always_inline)) {
      (kPlanes == 2 && !kPairs ? low : sum)[m][0] = starts[m] - Ints{};
    });
  }

  template <int chain>
  inline __attribute__((always_inline)) void add(Words weights,
                                                 const std::uint32_t* quad,
                                                 std::size_t plane) {
    unroll<kRows>([&]<int m>() __attribute__((always_inline)) {
      Ints& to = sum[m][chain % kChains];
      if constexpr (kPairs) {
        to = add_pair_products(to, weights, quad + m);
      } else {
        to = add_byte_products<kBits>(to, weights, quad + m);
        if constexpr (kPlanes == 2) {
          Ints& to_low = low[m][chain % kChains];
          to_low = add_byte_products<kBits>(to_low, weights, quad + plane + m);
        }
      }
    });
  }

  template <int m>
  inline __attribute__((always_inline)) Floats total() {
    unroll<kChains - 1>([&]<int c>() __attribute__((always_inline)) {
      sum[m][0] += sum[m][c + 1];
      low[m][0] += low[m][c + 1];
    });
    return __builtin_convertvector(
        kPlanes == 2 && !kPairs ? (sum[m][0] << 8) + low[m][0] : sum[m][0],
        Floats);
  }

  inline __attribute__((always_inline)) void scale_into(Floats (&scaled)[kRows],
                                                        Floats scale) {
    unroll<kRows>([&]<int m>() __attribute__((always_inline)) {
      scaled[m] = multiply_add(total<m>(), scale, scaled[m]);
    });
  }
};

// sums[m] += scaled[m] * steps[m]
template <int kRows>
static inline __attribute__((always_inline)) void add_in_steps(
    Floats (&sums)[kRows], const Floats (&scaled)[kRows], const float* steps) {
  unroll<kRows>([&]<int m>() __attribute__((always_inline)) {
    sums[m] = multiply_add(scaled[m], splat(steps[m]), sums[m]);
  });
}

// The sums of a part of a panel over all columns, read where it lies.
template <ElementFormat kFormat, int kRows, int kPlanes>
static void integer_part(const PanelMatrix& w,
                         const IntegerTile& x,
                         const std::byte* p,
                         int part,
                         Floats (&total)[kRows]) {
  using E = Element<kFormat>;
  constexpr bool kPairs = has_pairs(kRows, kPlanes);
  constexpr int kBlocksAtOnce = 32 / E::kColumns;
  const int scale_bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
  const int blocks = w.group_size / E::kColumns;
  const std::size_t plane = static_cast<std::size_t>(w.num_columns / 4) * kRows;
  const std::byte* scales_at = p + part * kLanes * scale_bytes;
  p += w.scale_bytes();
  const std::uint32_t* quad = x.quads;
  const float* step = x.steps;
  const int together = step_columns(kPlanes, w.group_size);
  int g = 0;  // times kRows
  for (int c = 0; c < w.num_columns; step += kRows) {
    const int end = w.num_columns - c < together ? w.num_columns : c + together;
    Floats scaled[kRows] = {};  // in steps
    for (; c < end; c += w.group_size, g += kRows) {
      const GroupScales<kFormat> scales(w, scales_at);
      prefetch(scales_at + kAheadBytes);
      scales_at += w.group_scale_bytes();
      GroupSums<E::kBits, kRows, kPlanes> sums(x.starts + g);
      auto add_block = [&]() __attribute__((always_inline)) {
        take_apart<kFormat, kPairs>(
            p + part * kLanes * 4,
            [&]<int i>(Words vector) __attribute__((always_inline)) {
              sums.template add<i>(vector, quad, plane);
              quad += kRows;
            });
        p += E::kWords * kPanelRows * 4;
      };
      int i = 0;
      for (; i + kBlocksAtOnce <= blocks; i += kBlocksAtOnce) {
        unroll<kBlocksAtOnce>([&]<int>() __attribute__((always_inline)) {
          add_block();
        });
      }
      for (; i < blocks; ++i) add_block();
      sums.scale_into(scaled, scales.scale);
      if (w.has_zeros) add_products<kRows>(scales.offset, x.sums + g, scaled);
    }
    add_in_steps(total, scaled, step);
  }
}

// Few tiles: weights are read where they lie.
template <ElementFormat kFormat, int kRows, int kPlanes>
static void integer_tile(const PanelMatrix& w,
                         const IntegerTile& x,
                         int begin,
                         int end,
                         float* y,
                         std::size_t y_stride) {
  for (int panel = begin; panel < end; ++panel) {
    for (int part = 0; part < kParts; ++part) {
      Floats totals[kRows] = {};
      integer_part<kFormat, kRows, kPlanes>(
          w, x, w.data + panel * w.panel_bytes, part, totals);
      store_part(w, totals, x.num_rows, panel, part, y, y_stride);
    }
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
