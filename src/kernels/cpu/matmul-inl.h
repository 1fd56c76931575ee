// Products with packed matrices.
//
// An integer element q of b bits, stored at the top of its place, becomes the
// float 1 + q / 2^b by shifting it to the top of the mantissa: one shift and
// one ternary logic operation, with no conversion. scale * q + zero is then S *
// (1 + q / 2^b) + Z with S = scale
// * 2^b and Z = zero - S.
#pragma once

#include "kernels/cpu/elementwise-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

template <ElementFormat format>
struct Element;

template <int kBits_>
struct IntegerElement {
  static constexpr int kBits = kBits_;
  static constexpr int kPerWord = 32 / kBits;

  // Element i of each word as 1 + q / 2^b.
  template <int i>
  static inline Floats get(Words words) {
    constexpr int kShift = 23 - kBits - element_bit(kBits, i);
    if constexpr (kShift >= 0) {
      words = words << kShift;
    } else {
      words = words >> -kShift;
    }
    constexpr std::uint32_t kMask = ((1u << kBits) - 1) << (23 - kBits);
    return floats_of((words & kMask) | 0x3f800000u);
  }
};

template <>
struct Element<ElementFormat::u2> : IntegerElement<2> {};
template <>
struct Element<ElementFormat::u4> : IntegerElement<4> {};
template <>
struct Element<ElementFormat::u8> : IntegerElement<8> {};

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

constexpr bool is_integer(ElementFormat format) {
  return format == ElementFormat::u2 || format == ElementFormat::u4 ||
         format == ElementFormat::u8;
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
struct ElementScales {
  Floats scale;
  Floats zero;

  ElementScales(const PanelMatrix& w, const std::byte* p) {
    const int bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
    scale = load_scales(w.scale_format, p) * static_cast<float>(1 << w.bits);
    // Zeros that aren't there are minus half of S.
    zero = w.has_zeros
               ? load_scales(w.scale_format, p + kPanelRows * bytes) - scale
               : scale * -1.5f;
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
    const int scale_bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
    const int words_per_group = w.group_size / E::kPerWord;
    const std::byte* scales_at = p[0] + part * kLanes * scale_bytes;
    unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
      p[i] += w.scale_bytes();
    });
    for (int c = 0; c < w.num_columns; c += w.group_size) {
      Floats scale[kPanels];
      Floats zero[kPanels];
      unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
        const ElementScales scales(w, scales_at + i * w.panel_bytes);
        if (kPanels > 1) prefetch(scales_at + i * w.panel_bytes + ahead);
        scale[i] = scales.scale;
        zero[i] = scales.zero;
      });
      scales_at += w.group_scale_bytes();
      for (int j = 0; j < words_per_group; ++j) {
        Words words[kPanels];
        unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
          words[i] = load_words(p[i] + part * kLanes * 4);
          if (kPanels > 1) prefetch(p[i] + ahead);
          p[i] += kPanelRows * 4;
        });
        unroll<E::kPerWord>([&]<int e>() __attribute__((always_inline)) {
          unroll<kPanels>([&]<int i>() __attribute__((always_inline)) {
            const Floats value =
                multiply_add(E::template get<e>(words[i]), scale[i], zero[i]);
            add_products<kTile>(value, tile + e * kTile, sum[i]);
          });
        });
        tile += E::kPerWord * kTile;
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
    case u4:
      return f.template operator()<u4>();
    case u8:
      return f.template operator()<u8>();
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
