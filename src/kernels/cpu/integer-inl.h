// Products of integer weights with activations that are rounded to integers of
// 16 or 8 bits per group of columns (IntegerTile). Sums within a group are
// exact; every instruction set has the same.
#pragma once

#include "kernels/cpu/matmul-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

typedef std::int8_t Bytes __attribute__((vector_size(kLanes), may_alias));
typedef std::int16_t HalfShorts
    __attribute__((vector_size(2 * kLanes), may_alias));
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

// The elements of kBits bits that begin at bit kShift of each half of a word.
template <int kBits, int kShift>
static inline Words pairs_at(Words words) {
  if constexpr (kShift + kBits == 16) {
    return (Words)((UnsignedShorts)words >> kShift);
  } else {
    constexpr std::uint32_t kMask = ((1u << kBits) - 1) * 0x00010001u;
    return (words >> kShift) & kMask;
  }
}

template <ElementFormat kFormat, int kRows, int kPlanes>
static void integer_part(const PanelMatrix& w,
                         const IntegerTile& x,
                         int panel,
                         int part,
                         Floats (&total)[kRows]) {
  using E = Element<kFormat>;
  constexpr int kSteps = 8 / E::kBits;  // vectors of bytes in one of words
  constexpr std::uint32_t kMask = ((1u << E::kBits) - 1) * 0x01010101u;
  constexpr int kWordsAtOnce = 32 / E::kPerWord;
  constexpr bool kPairs = has_pairs(kRows, kPlanes);
  // Enough independent sums to hide the latency.
  constexpr int kChains = kRows > 1 ? 1 : kPairs ? 2 : kSteps;
  const int scale_bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
  // The elements lie at the top of their places.
  const float unit = 1.0f / static_cast<float>(1 << (E::kBits - w.bits));
  const int words_per_group = w.group_size / E::kPerWord;
  const int groups = w.num_columns / w.group_size;
  const std::size_t plane = static_cast<std::size_t>(w.num_columns / 4) * kRows;
  const std::uint32_t* quad = x.quads;
  const std::byte* p = w.data + panel * w.panel_bytes;
  for (int g = 0; g < groups; ++g) {
    const Floats scale =
        load_scales(w.scale_format, p + part * kLanes * scale_bytes) * unit;
    const Floats zero = load_scales(
        w.scale_format, p + (kPanelRows + part * kLanes) * scale_bytes);
    prefetch(p + kAheadBytes);
    p += 2 * kPanelRows * scale_bytes;
    Ints sum[kRows][kChains] = {};  // of pairs, the only plane, or the high one
    Ints low[kRows][kChains] = {};
    auto add_words = [&]() __attribute__((always_inline)) {
      const Words words = load_words(p + part * kLanes * 4);
      prefetch(p + kAheadBytes);
      p += kPanelRows * 4;
      unroll<kSteps>([&]<int e>() {
        if constexpr (kPairs) {
          unroll<2>([&]<int half>() {
            const Words pairs =
                pairs_at<E::kBits, half * 8 + e * E::kBits>(words);
            unroll<kRows>([&]<int m>() {
              auto& to = sum[m][half % kChains];
              to = add_pair_products(to, pairs, quad + half * kRows + m);
            });
          });
        } else {
          const Words bytes =
              kSteps == 1 ? words : (words >> (e * E::kBits)) & kMask;
          unroll<kRows>([&]<int m>() {
            constexpr int c = e % kChains;
            sum[m][c] = add_byte_products<E::kBits>(sum[m][c], bytes, quad + m);
            if constexpr (kPlanes == 2) {
              low[m][c] = add_byte_products<E::kBits>(
                  low[m][c], bytes, quad + plane + m);
            }
          });
        }
        quad += kPairs ? 2 * kRows : kRows;
      });
    };
    int i = 0;
    for (; i + kWordsAtOnce <= words_per_group; i += kWordsAtOnce) {
      unroll<kWordsAtOnce>([&]<int>() { add_words(); });
    }
    for (; i < words_per_group; ++i) add_words();
    unroll<kRows>([&]<int m>() {
      unroll<kChains - 1>([&]<int c>() {
        sum[m][0] += sum[m][c + 1];
        low[m][0] += low[m][c + 1];
      });
      const Ints n =
          kPlanes == 2 && !kPairs ? (sum[m][0] << 8) + low[m][0] : sum[m][0];
      total[m] = multiply_add(__builtin_convertvector(n, Floats),
                              scale * x.steps[g * kRows + m],
                              total[m]);
      total[m] = multiply_add(zero, splat(x.sums[g * kRows + m]), total[m]);
    });
  }
}

template <ElementFormat kFormat, int kRows, int kPlanes>
static void integer_tile(const PanelMatrix& w,
                         const IntegerTile& x,
                         int num_x_rows,
                         int begin,
                         int end,
                         float* y,
                         std::size_t y_stride) {
  for (int panel = begin; panel < end; ++panel) {
    for (int part = 0; part < kParts; ++part) {
      Floats totals[kRows] = {};
      integer_part<kFormat, kRows, kPlanes>(w, x, panel, part, totals);
      store_part(w, totals, num_x_rows, panel, part, y, y_stride);
    }
  }
}

static int integer_tile_rows(int num_rows) {
  for (int rows = 1; rows < kMaxIntegerRows; rows *= 2) {
    if (num_rows <= rows) return rows;
  }
  return kMaxIntegerRows;
}

static void integer_matmul(const PanelMatrix& w,
                           const IntegerTile& tile,
                           int num_x_rows,
                           int begin,
                           int end,
                           float* y,
                           std::size_t y_stride) {
  auto run_planes = [&]<int kRows, int kPlanes>() {
    using enum ElementFormat;
    switch (w.format) {
      case u2:
        return integer_tile<u2, kRows, kPlanes>(
            w, tile, num_x_rows, begin, end, y, y_stride);
      case u4:
        return integer_tile<u4, kRows, kPlanes>(
            w, tile, num_x_rows, begin, end, y, y_stride);
      default:
        return integer_tile<u8, kRows, kPlanes>(
            w, tile, num_x_rows, begin, end, y, y_stride);
    }
  };
  auto run = [&]<int kRows>() {
    return tile.planes == 2 ? run_planes.template operator()<kRows, 2>()
                            : run_planes.template operator()<kRows, 1>();
  };
  switch (tile.rows) {
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    case 4:
      return run.template operator()<4>();
    default:
      return run.template operator()<kMaxIntegerRows>();
  }
}

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
                       int num_rows,
                       int num_columns,
                       int group_size,
                       int tile_rows,
                       int planes,
                       std::uint32_t* quads,
                       float* steps,
                       float* sums) {
  const float most_steps = planes == 2 ? 127.0f * 256.0f : 127.0f;
  const std::size_t plane =
      static_cast<std::size_t>(num_columns / 4) * tile_rows;
  for (int m = 0; m < tile_rows; ++m) {
    if (m >= num_rows) {
      for (int g = 0; g < num_columns / group_size; ++g) {
        steps[g * tile_rows + m] = sums[g * tile_rows + m] = 0.0f;
      }
      for (std::size_t i = 0; i < plane * planes; i += tile_rows) {
        quads[i + m] = 0;
      }
      continue;
    }
    const float* row = x + static_cast<std::size_t>(m) * num_columns;
    for (int c = 0, g = m; c < num_columns; c += group_size, g += tile_rows) {
      Floats most = {};
      for (int i = c; i < c + group_size; i += kLanes) {
        most = maximum(most, magnitude(load(row + i)));
      }
      const float largest = largest_of(most);
      // The inverse of a smaller one would overflow.
      const float inverse = largest > 1e-30f ? most_steps / largest : 0.0f;
      steps[g] = largest / most_steps;
      sums[g] =
          steps[g] *
          round_group(
              row, inverse, c, group_size, tile_rows, m, planes, plane, quads);
    }
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
