// Products with packed matrices.
//
// An integer element q of b bits becomes the float 1 + q / 2^b by shifting it
// to the top of the mantissa: one shift and one ternary logic operation, with
// no conversion. scale * q + zero is then S * (1 + q / 2^b) + Z with S = scale
// * 2^b and Z = zero - S.
#pragma once

#include "kernels/cpu/elementwise-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

template <ElementFormat format>
struct Element;

// words moved so that bit kFrom comes to bit kTo.
template <int kFrom, int kTo>
static inline Words move_bits(Words words) {
  if constexpr (kTo >= kFrom) {
    return words << (kTo - kFrom);
  } else {
    return words >> (kFrom - kTo);
  }
}

// The element of kBits bits from kBit on, as 1 + q / 2^kBits.
template <int kBits, int kBit>
static inline Floats one_and_element(Words words) {
  constexpr std::uint32_t kMask = ((1u << kBits) - 1) << (23 - kBits);
  return floats_of((move_bits<kBit, 23 - kBits>(words) & kMask) | 0x3f800000u);
}

// Integers of so many bits, from the words of a block.
template <int kBits_>
struct IntegerElement {
  static constexpr int kBits = kBits_;
  static constexpr ElementPlaces kPlaces{kBits};
  static constexpr int kColumns = kPlaces.block_columns();
  static constexpr int kWords = kPlaces.block_words();
  static constexpr float kUnit = 1.0f;  // of the scale
  // Whether floats are made of the words, or of bytes().
  static constexpr bool kIsPlain = kPlaces.high_bits == 0;

  // Those of columns 4 e to 4 e + 3 in the four bytes.
  template <int e>
  static inline Words bytes(const Words (&words)[kWords]) {
    constexpr int kLow = kPlaces.low_bits;
    constexpr int kHigh = kPlaces.high_bits;
    constexpr std::uint32_t kOnes = 0x01010101u;
    const Words low = words[4 * e / kPlaces.low_per_word()];
    if constexpr (kLow == 8) return low;
    constexpr int kBit = element_bit(kLow, 4 * e % kPlaces.low_per_word());
    const Words low_bits = (low >> kBit) & (((1u << kLow) - 1) * kOnes);
    if constexpr (kHigh == 0) return low_bits;
    const Words high =
        move_bits<element_bit(kHigh, 4 * e), kLow>(words[kWords - 1]);
    return low_bits | (high & ((((1u << kHigh) - 1) << kLow) * kOnes));
  }
};

template <>
struct Element<ElementFormat::u2> : IntegerElement<2> {};
template <>
struct Element<ElementFormat::u3> : IntegerElement<3> {};
template <>
struct Element<ElementFormat::u4> : IntegerElement<4> {};
template <>
struct Element<ElementFormat::u5> : IntegerElement<5> {};
template <>
struct Element<ElementFormat::u6> : IntegerElement<6> {};
template <>
struct Element<ElementFormat::u8> : IntegerElement<8> {};

// integer_of_e2m1() of each byte, below 16.
template <int... i>
static inline Words integers_of_e2m1(Words codes,
                                     std::integer_sequence<int, i...>) {
  alignas(16) static constexpr std::uint8_t kTable[] = {
      static_cast<std::uint8_t>(integer_of_e2m1(i))...};
#if defined(__AVX512BW__)
  const __m512i table =
      _mm512_broadcast_i32x4(*reinterpret_cast<const __m128i*>(kTable));
  return (Words)_mm512_shuffle_epi8(table, (__m512i)codes);
#elif defined(__AVX2__)
  const __m256i table =
      _mm256_broadcastsi128_si256(*reinterpret_cast<const __m128i*>(kTable));
  return (Words)_mm256_shuffle_epi8(table, (__m256i)codes);
#elif defined(__aarch64__)
  return (Words)vqtbl1q_u8(vld1q_u8(kTable), (uint8x16_t)codes);
#else
  std::uint8_t bytes[sizeof(codes)];
  std::memcpy(bytes, &codes, sizeof(codes));
  for (std::uint8_t& byte : bytes) byte = kTable[byte];
  std::memcpy(&codes, bytes, sizeof(codes));
  return codes;
#endif
}

template <>
struct Element<ElementFormat::e2m1> {
  static constexpr int kBits = 5;  // of the integers
  static constexpr int kColumns = 8;
  static constexpr int kWords = 1;
  static constexpr float kUnit = 0.5f;
  static constexpr bool kIsPlain = false;

  template <int e>
  static inline Words bytes(const Words (&words)[kWords]) {
    return integers_of_e2m1(IntegerElement<4>::bytes<e>(words),
                            std::make_integer_sequence<int, 16>{});
  }
};

// A block as words of whole elements, in places of so many bits.
template <ElementFormat kFormat>
struct FloatBlock {
  using E = Element<kFormat>;
  static constexpr int kPlaceBits = E::kIsPlain ? E::kBits : 8;
  static constexpr int kColumnsPerWord = 32 / kPlaceBits;
  static constexpr int kWords = E::kColumns / kColumnsPerWord;

  Words words[kWords];

  explicit FloatBlock(const Words (&block)[E::kWords]) {
    unroll<kWords>([&]<int e>() __attribute__((always_inline)) {
      if constexpr (E::kIsPlain) {
        words[e] = block[e];
      } else {
        words[e] = E::template bytes<e>(block);
      }
    });
  }
};

template <>
struct Element<ElementFormat::f32> {
  static constexpr int kBytes = 4;
  static inline Floats get(const std::byte* p) { return load((const float*)p); }
};
template <>
struct Element<ElementFormat::bf16> {
  static constexpr int kBytes = 2;
  static inline Floats get(const std::byte* p) { return load_bf16(p); }
};
template <>
struct Element<ElementFormat::f16> {
  static constexpr int kBytes = 2;
  static inline Floats get(const std::byte* p) { return load_f16(p); }
};

static inline Floats load_scales(ScaleFormat format, const std::byte* p) {
  switch (format) {
    case ScaleFormat::f32:
      return load((const float*)p);
    case ScaleFormat::f16:
      return load_f16(p);
    default:
      return load_bf16(p);
  }
}

// Stores the rows of one panel part that exist.
static inline void store_rows(Floats v, float* y, int first_row, int num_rows) {
  if (first_row + kLanes <= num_rows) {
    store(v, y + first_row);
    return;
  }
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int i = 0; first_row + i < num_rows; ++i) {
    y[first_row + i] = lanes[i];
  }
}

// A group's S and Z (see above).
template <ElementFormat kFormat>
struct ElementScales {
  Floats scale;
  Floats zero;

  ElementScales(const PanelMatrix& w, const std::byte* p) {
    using E = Element<kFormat>;
    constexpr float kSteps = 1 << E::kBits;
    constexpr float kMiddle = element_middle(kFormat);
    const int bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
    scale = load_scales(w.scale_format, p) * (E::kUnit * kSteps);
    zero = w.has_zeros
               ? load_scales(w.scale_format, p + kPanelRows * bytes) - scale
               : scale * (-kMiddle / kSteps - 1.0f);
  }
};

// ---- elements are scaled, then multiplied with a tile of rows of x
//
// Every sum runs over the columns in their order, whatever the number of rows:
// a row's result has the same bits alone and among others. What few rows lack
// in independent sums they take from several panels at once.

template <int kTile>
static inline __attribute__((always_inline)) void add_products(
    Floats w, const float* x, Floats (&sum)[kTile]) {
  unroll<kTile>([&]<int m>() __attribute__((always_inline)) {
    sum[m] = multiply_add(w, splat(x[m]), sum[m]);
  });
}

template <ElementFormat kFormat, int kPanels, int kTile>
static inline __attribute__((always_inline)) void matmul_part(
    const PanelMatrix& w,
    const float* tile,
    int panel,
    int part,
    Floats (&result)[kPanels][kTile]) {
  using E = Element<kFormat>;
  // Its own, or compilers keep it in memory, for others have the result's
  // address.
  Floats sum[kPanels][kTile] = {};
  // What short panels side by side have ahead are the panels after them.
  const std::size_t together = kPanels * w.panel_bytes;
  const bool are_short = together > kAheadBytes && together < 4 * kAheadBytes;
  const std::size_t ahead = are_short ? together : kAheadBytes;
  const std::byte* p[kPanels];
  unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
    p[i] = w.data + (panel + i) * w.panel_bytes;
  });
  if constexpr (is_integer(kFormat)) {
    using Block = FloatBlock<kFormat>;
    const int scale_bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
    const std::byte* scales_at = p[0] + part * kLanes * scale_bytes;
    unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
      p[i] += w.scale_bytes();
    });
    for (int c = 0; c < w.num_columns; c += w.group_size) {
      Floats scale[kPanels];
      Floats zero[kPanels];
      unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
        const ElementScales<kFormat> scales(w, scales_at + i * w.panel_bytes);
        if (kPanels > 1) prefetch(scales_at + i * w.panel_bytes + ahead);
        scale[i] = scales.scale;
        zero[i] = scales.zero;
      });
      scales_at += w.group_scale_bytes();
      for (int j = 0; j < w.group_size; j += E::kColumns) {
        Words words[kPanels][Block::kWords];
        unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
          Words block[E::kWords];
          unroll<E::kWords>([&]<int k>() __attribute__((always_inline)) {
            block[k] = load_words(p[i] + part * kLanes * 4);
            if (kPanels > 1) prefetch(p[i] + ahead);
            p[i] += kPanelRows * 4;
          });
          const Block opened(block);
          std::memcpy(words[i], opened.words, sizeof(words[i]));
        });
        for (int k = 0; k < Block::kWords; ++k) {
          unroll<Block::kColumnsPerWord>([&]<int e>() __attribute__((
              always_inline)) {
            unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
              const Floats element =
                  one_and_element<E::kBits, element_bit(Block::kPlaceBits, e)>(
                      words[i][k]);
              const Floats value = multiply_add(element, scale[i], zero[i]);
              add_products<kTile>(value, tile + e * kTile, sum[i]);
            });
          });
          tile += Block::kColumnsPerWord * kTile;
        }
      }
    }
  } else {
    for (int c = 0; c < w.num_columns; ++c) {
      unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
        if (kPanels > 1) prefetch(p[i] + ahead);
        add_products<kTile>(
            E::get(p[i] + part * kLanes * E::kBytes), tile, sum[i]);
        p[i] += kPanelRows * E::kBytes;
      });
      tile += kTile;
    }
  }
  unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
    unroll<kTile>([&]<int m>() __attribute__((always_inline)) {
      result[i][m] = sum[i][m];
    });
  });
}

// The rows of y that there are, from the sums of one part of a panel.
template <int kRows>
static inline void store_part(const PanelMatrix& w,
                              const Floats (&sums)[kRows],
                              int num_x_rows,
                              int panel,
                              int part,
                              float* y,
                              std::size_t y_stride) {
  const int first_row = panel * kPanelRows + part * kLanes;
  unroll<kRows>([&]<int m>() {
    if (m < num_x_rows) {
      store_rows(sums[m], y + m * y_stride, first_row, w.num_rows);
    }
  });
}

template <ElementFormat kFormat, int kPanels, int kTile>
static void matmul_tile(const PanelMatrix& w,
                        const float* tile,
                        int num_x_rows,
                        int begin,
                        int end,
                        float* y,
                        std::size_t y_stride) {
  int panel = begin;
  auto run = [&]<int kCount>() {
    for (; panel + kCount <= end; panel += kCount) {
      for (int part = 0; part < kParts; ++part) {
        Floats sums[kCount][kTile];
        matmul_part<kFormat>(w, tile, panel, part, sums);
        unroll<kCount>([&]<int i>() {
          store_part(w, sums[i], num_x_rows, panel + i, part, y, y_stride);
        });
      }
    }
  };
  run.template operator()<kPanels>();
  if constexpr (kPanels > 1) run.template operator()<1>();
}

// ---- choice of the instance

// The largest tile's sums, an element, and a broadcast fit the registers.
inline constexpr int kMaxTileRows = kHas32Registers ? 24 : 12;

// Calls f.template operator()<kTile, kPanels>() with the smallest tile that
// holds the rows.
template <class F>
static inline auto with_tile(int num_rows, F&& f) {
  constexpr bool kWide = kHas32Registers;
  if (num_rows <= 1) return f.template operator()<1, kPanelsAtOnce>();
  if (num_rows <= 2) return f.template operator()<2, kPanelsAtOnce>();
  if (num_rows <= 4) return f.template operator() < 4, kWide ? 4 : 2 > ();
  if (num_rows <= 8) return f.template operator() < 8, kWide ? 2 : 1 > ();
  if (kWide && num_rows <= 16)
    return f.template operator() < kWide ? 16 : 8, 1 > ();
  return f.template operator()<kMaxTileRows, 1>();
}

static int tile_rows(int num_rows) {
  return with_tile(num_rows, []<int kTile, int>() { return kTile; });
}

// Calls f.template operator()<format>() with the matrix's.
template <class F>
static inline void with_format(const PanelMatrix& w, F&& f) {
  using enum ElementFormat;
  switch (w.format) {
    case u2:
      return f.template operator()<u2>();
    case u3:
      return f.template operator()<u3>();
    case u4:
      return f.template operator()<u4>();
    case u5:
      return f.template operator()<u5>();
    case u6:
      return f.template operator()<u6>();
    case u8:
      return f.template operator()<u8>();
    case e2m1:
      return f.template operator()<e2m1>();
    case bf16:
      return f.template operator()<bf16>();
    case f16:
      return f.template operator()<f16>();
    case f32:
      return f.template operator()<f32>();
  }
}

static void matmul(const PanelMatrix& w,
                   const float* tile,
                   int num_x_rows,
                   int begin,
                   int end,
                   float* y,
                   std::size_t y_stride) {
  with_format(w, [&]<ElementFormat kFormat>() {
    with_tile(num_x_rows, [&]<int kTile, int kPanels>() {
      matmul_tile<kFormat, kPanels, kTile>(
          w, tile, num_x_rows, begin, end, y, y_stride);
    });
  });
}

static void pack_tile(const float* x,
                      std::size_t x_stride,
                      int num_rows,
                      int num_columns,
                      float* tile) {
  interleave_rows(num_rows,
                  tile_rows(num_rows),
                  num_columns,
                  tile,
                  [&](int m, int c, int count) {
                    return load_some(x + m * x_stride + c, count);
                  });
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
