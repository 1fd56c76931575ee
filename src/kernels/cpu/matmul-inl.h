// Products with packed matrices.
//
// An integer element q of b bits, stored at the top of its place, becomes the
// float 1 + q / 2^b by shifting it to the top of the mantissa: one shift and
// one ternary logic operation, with no conversion. scale * q + zero is then S *
// (1 + q / 2^b) + Z with S = scale
// * 2^b and Z = zero - S.
#pragma once

#include "kernels/cpu/simd-inl.h"

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

template <ScaleFormat format>
struct Scale {
  static constexpr int kBytes = format == ScaleFormat::f32 ? 4 : 2;
  static inline Floats get(const std::byte* p) {
    if constexpr (format == ScaleFormat::f32) {
      return load((const float*)p);
    } else if constexpr (format == ScaleFormat::f16) {
      return load_f16(p);
    } else {
      return load_bf16(p);
    }
  }
};

constexpr bool is_integer(ElementFormat format) {
  return format == ElementFormat::u2 || format == ElementFormat::u4 ||
         format == ElementFormat::u8;
}

// Calls f.template operator()<0>() ... <kCount - 1>().
template <int kCount, int i = 0, class F>
static inline __attribute__((always_inline)) void unroll(F&& f) {
  if constexpr (i < kCount) {
    f.template operator()<i>();
    unroll<kCount, i + 1>(f);
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

// ---- few rows of x: group sums first, then scaled once per group

template <ElementFormat kFormat, ScaleFormat kScale, int kRows>
static void matvec_integer(const PanelMatrix& w,
                           const float* x,
                           std::size_t x_stride,
                           const float* sums,
                           int begin,
                           int end,
                           float* y,
                           std::size_t y_stride) {
  using E = Element<kFormat>;
  using S = Scale<kScale>;
  // Enough independent sums to hide the latency of the multiply-add.
  constexpr int kChains = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
  const float steps = static_cast<float>(1 << w.bits);
  const int groups = w.num_columns / w.group_size;
  const int words_per_group = w.group_size / E::kPerWord;
  const std::size_t group_bytes =
      2 * kPanelRows * S::kBytes +
      static_cast<std::size_t>(words_per_group) * kPanelRows * 4;
  for (int panel = begin; panel < end; ++panel) {
    for (int part = 0; part < kParts; ++part) {
      const std::byte* p = w.data + panel * w.panel_bytes;
      Floats total[kRows] = {};
      for (int g = 0; g < groups; ++g, p += group_bytes) {
        const std::byte* word =
            p + 2 * kPanelRows * S::kBytes + part * kLanes * 4;
        __builtin_prefetch(word + 1024);
        Floats sum[kRows][kChains] = {};
        const float* xg = x + static_cast<std::size_t>(g) * w.group_size;
        for (int i = 0; i < words_per_group; ++i) {
          Words words = load_words(word);
          word += kPanelRows * 4;
          unroll<E::kPerWord>([&]<int e>() {
            Floats q = E::template get<e>(words);
            unroll<kRows>([&]<int m>() {
              sum[m][e % kChains] += q * xg[m * x_stride + e];
            });
          });
          xg += E::kPerWord;
        }
        Floats scale = S::get(p + part * kLanes * S::kBytes) * steps;
        Floats zero =
            S::get(p + (kPanelRows + part * kLanes) * S::kBytes) - scale;
        unroll<kRows>([&]<int m>() {
          Floats s = sum[m][0];
          unroll<kChains - 1>([&]<int c>() { s += sum[m][c + 1]; });
          total[m] += scale * s;
          total[m] += zero * sums[m * groups + g];
        });
      }
      for (int m = 0; m < kRows; ++m) {
        store_rows(total[m],
                   y + m * y_stride,
                   panel * kPanelRows + part * kLanes,
                   w.num_rows);
      }
    }
  }
}

template <ElementFormat kFormat, int kRows>
static void matvec_float(const PanelMatrix& w,
                         const float* x,
                         std::size_t x_stride,
                         int begin,
                         int end,
                         float* y,
                         std::size_t y_stride) {
  using E = Element<kFormat>;
  constexpr int kChains = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
  constexpr int kStep = kPanelRows * E::kBytes;
  for (int panel = begin; panel < end; ++panel) {
    for (int part = 0; part < kParts; ++part) {
      const std::byte* p =
          w.data + panel * w.panel_bytes + part * kLanes * E::kBytes;
      Floats sum[kRows][kChains] = {};
      int c = 0;
      for (; c + 4 <= w.num_columns; c += 4, p += 4 * kStep) {
        __builtin_prefetch(p + 2048);
        unroll<4>([&]<int e>() {
          Floats v = E::get(p + e * kStep);
          unroll<kRows>([&]<int m>() {
            sum[m][e % kChains] += v * x[m * x_stride + c + e];
          });
        });
      }
      for (; c < w.num_columns; ++c, p += kStep) {
        Floats v = E::get(p);
        unroll<kRows>([&]<int m>() { sum[m][0] += v * x[m * x_stride + c]; });
      }
      unroll<kRows>([&]<int m>() {
        unroll<kChains - 1>([&]<int i>() { sum[m][0] += sum[m][i + 1]; });
        store_rows(sum[m][0],
                   y + m * y_stride,
                   panel * kPanelRows + part * kLanes,
                   w.num_rows);
      });
    }
  }
}

// ---- many rows of x: elements are scaled, then multiplied with a whole tile

template <int kTile>
static inline __attribute__((always_inline)) void add_products(
    Floats w, const float* x, Floats (&sum)[kTile]) {
  unroll<kTile>([&]<int m>() { sum[m] += w * x[m]; });
}

template <ElementFormat kFormat, ScaleFormat kScale, int kTile>
static void matmul_part(const PanelMatrix& w,
                        const float* tile,
                        int panel,
                        int part,
                        Floats (&sum)[kTile]) {
  using E = Element<kFormat>;
  const std::byte* p = w.data + panel * w.panel_bytes;
  if constexpr (is_integer(kFormat)) {
    using S = Scale<kScale>;
    const float steps = static_cast<float>(1 << w.bits);
    const int words_per_group = w.group_size / E::kPerWord;
    for (int c = 0; c < w.num_columns; c += w.group_size) {
      Floats scale = S::get(p + part * kLanes * S::kBytes) * steps;
      Floats zero =
          S::get(p + (kPanelRows + part * kLanes) * S::kBytes) - scale;
      p += 2 * kPanelRows * S::kBytes;
      for (int i = 0; i < words_per_group; ++i) {
        Words words = load_words(p + part * kLanes * 4);
        p += kPanelRows * 4;
        unroll<E::kPerWord>([&]<int e>() {
          Floats value = E::template get<e>(words) * scale + zero;
          add_products<kTile>(value, tile + e * kTile, sum);
        });
        tile += E::kPerWord * kTile;
      }
    }
  } else {
    p += part * kLanes * E::kBytes;
    for (int c = 0; c < w.num_columns; ++c) {
      add_products<kTile>(E::get(p), tile, sum);
      p += kPanelRows * E::kBytes;
      tile += kTile;
    }
  }
}

// Panels begin to end in parts as wide as a vector: add(panel, part, sums)
// makes the sums of one, which go to the rows of y that there are.
template <int kRows, class Add>
static inline void each_part(const PanelMatrix& w,
                             int num_x_rows,
                             int begin,
                             int end,
                             float* y,
                             std::size_t y_stride,
                             const Add& add) {
  for (int panel = begin; panel < end; ++panel) {
    for (int part = 0; part < kParts; ++part) {
      Floats sums[kRows] = {};
      add(panel, part, sums);
      const int first_row = panel * kPanelRows + part * kLanes;
      unroll<kRows>([&]<int m>() {
        if (m < num_x_rows) {
          store_rows(sums[m], y + m * y_stride, first_row, w.num_rows);
        }
      });
    }
  }
}

template <ElementFormat kFormat, ScaleFormat kScale, int kTile>
static void matmul_tile(const PanelMatrix& w,
                        const float* tile,
                        int num_x_rows,
                        int begin,
                        int end,
                        float* y,
                        std::size_t y_stride) {
  each_part<kTile>(w,
                   num_x_rows,
                   begin,
                   end,
                   y,
                   y_stride,
                   [&](int panel, int part, Floats(&sums)[kTile]) {
                     matmul_part<kFormat, kScale, kTile>(
                         w, tile, panel, part, sums);
                   });
}

// ---- choice of the instance

// Sums for the largest tile, the element, and the broadcast fit the registers.
inline constexpr int kTiles[] = {
    kLanes == 16 ? 8 : 4, kLanes == 16 ? 16 : 8, kLanes == 16 ? 24 : 12};

static int tile_rows(int num_rows) {
  return num_rows <= kTiles[0]
             ? kTiles[0]
             : (num_rows <= kTiles[1] ? kTiles[1] : kTiles[2]);
}

// Calls f.template operator()<format, scale>() with the matrix's formats.
template <class F>
static inline void with_formats(const PanelMatrix& w, F&& f) {
  using enum ElementFormat;
  auto with_scale = [&]<ElementFormat kFormat>() {
    switch (w.scale_format) {
      case ScaleFormat::f32:
        return f.template operator()<kFormat, ScaleFormat::f32>();
      case ScaleFormat::f16:
        return f.template operator()<kFormat, ScaleFormat::f16>();
      case ScaleFormat::bf16:
        return f.template operator()<kFormat, ScaleFormat::bf16>();
    }
  };
  switch (w.format) {
    case u2:
      return with_scale.template operator()<u2>();
    case u4:
      return with_scale.template operator()<u4>();
    case u8:
      return with_scale.template operator()<u8>();
    case bf16:
      return f.template operator()<bf16, ScaleFormat::f32>();
    case f16:
      return f.template operator()<f16, ScaleFormat::f32>();
    case f32:
      return f.template operator()<f32, ScaleFormat::f32>();
  }
}

static void matvec(const PanelMatrix& w,
                   const float* x,
                   std::size_t x_stride,
                   const float* sums,
                   int num_x_rows,
                   int begin,
                   int end,
                   float* y,
                   std::size_t y_stride) {
  with_formats(w, [&]<ElementFormat kFormat, ScaleFormat kScale>() {
    auto run = [&]<int kRows>() {
      if constexpr (is_integer(kFormat)) {
        matvec_integer<kFormat, kScale, kRows>(
            w, x, x_stride, sums, begin, end, y, y_stride);
      } else {
        matvec_float<kFormat, kRows>(w, x, x_stride, begin, end, y, y_stride);
      }
    };
    switch (num_x_rows) {
      case 1:
        return run.template operator()<1>();
      case 2:
        return run.template operator()<2>();
      case 3:
        return run.template operator()<3>();
      default:
        return run.template operator()<4>();
    }
  });
}

static void matmul(const PanelMatrix& w,
                   const float* tile,
                   int num_x_rows,
                   int begin,
                   int end,
                   float* y,
                   std::size_t y_stride) {
  with_formats(w, [&]<ElementFormat kFormat, ScaleFormat kScale>() {
    if (num_x_rows <= kTiles[0]) {
      matmul_tile<kFormat, kScale, kTiles[0]>(
          w, tile, num_x_rows, begin, end, y, y_stride);
    } else if (num_x_rows <= kTiles[1]) {
      matmul_tile<kFormat, kScale, kTiles[1]>(
          w, tile, num_x_rows, begin, end, y, y_stride);
    } else {
      matmul_tile<kFormat, kScale, kTiles[2]>(
          w, tile, num_x_rows, begin, end, y, y_stride);
    }
  });
}

static void pack_tile(const float* x,
                      std::size_t x_stride,
                      int num_rows,
                      int num_columns,
                      float* tile) {
  const int width = tile_rows(num_rows);
  for (int m = 0; m < width; ++m) {
    if (m < num_rows) {
      const float* row = x + m * x_stride;
      for (int c = 0; c < num_columns; ++c) {
        tile[static_cast<std::size_t>(c) * width + m] = row[c];
      }
    } else {
      for (int c = 0; c < num_columns; ++c) {
        tile[static_cast<std::size_t>(c) * width + m] = 0.0f;
      }
    }
  }
}

static void group_sums(const float* x,
                       int num_columns,
                       int group_size,
                       float* sums) {
  for (int c = 0, g = 0; c < num_columns; c += group_size, ++g) {
    Floats sum = {};
    for (int i = 0; i < group_size; i += kLanes) {
      sum += load(x + c + i);
    }
    sums[g] = sum_of(sum);
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
