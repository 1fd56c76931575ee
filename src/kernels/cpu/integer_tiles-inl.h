// Products of many tiles of integers: a part of a panel is taken apart once for
// all. The results' bits are those of integer_part().
#pragma once

#include "kernels/cpu/integer-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

// Part of a panel as many tiles read it: per group of columns scales, offsets
// if there are any, and the vectors that take_apart() makes.
template <ElementFormat kFormat, bool kPairs>
static void open_part(const PanelMatrix& w,
                      int panel,
                      int part,
                      std::uint32_t* out) {
  const int scale_bytes = w.scale_format == ScaleFormat::f32 ? 4 : 2;
  using E = Element<kFormat>;
  const std::byte* p = w.data + panel * w.panel_bytes;
  const std::byte* scales_at = p + part * kLanes * scale_bytes;
  p += w.scale_bytes();
  auto put = [&](auto vector) {
    std::memcpy(out, &vector, sizeof(vector));
    out += kLanes;
  };
  for (int c = 0; c < w.num_columns; c += w.group_size) {
    const GroupScales<kFormat> scales(w, scales_at);
    prefetch(scales_at + kAheadBytes);
    scales_at += w.group_scale_bytes();
    put(scales.scale);
    if (w.has_zeros) put(scales.offset);
    for (int i = 0; i < w.group_size; i += E::kColumns) {
      take_apart<kFormat, kPairs>(p + part * kLanes * 4,
                                  [&]<int>(Words vector) { put(vector); });
      p += E::kWords * kPanelRows * 4;
    }
  }
}

// integer_part() for what open_part() made.
template <ElementFormat kFormat, int kPlanes>
static void opened_part(const PanelMatrix& w,
                        const IntegerTile& x,
                        const std::uint32_t* p,
                        Floats (&result)[kMaxIntegerRows]) {
  constexpr int kRows = kMaxIntegerRows;
  constexpr int kBits = Element<kFormat>::kBits;
  constexpr int kVectors = has_pairs(kRows, kPlanes) ? 16 : 8;  // 32 columns'
  const std::size_t plane = static_cast<std::size_t>(w.num_columns / 4) * kRows;
  const std::uint32_t* quad = x.quads;
  const float* step = x.steps;
  const int together = step_columns(kPlanes, w.group_size);
  // Its own, or compilers keep it in memory, for others have the result's
  // address.
  Floats total[kRows] = {};
  int g = 0;  // times kRows
  for (int c = 0; c < w.num_columns; step += kRows) {
    const int end = w.num_columns - c < together ? w.num_columns : c + together;
    Floats scaled[kRows] = {};  // in steps
    for (; c < end; g += kRows) {
      const auto* scale = reinterpret_cast<const float*>(p);
      p += w.has_zeros ? 2 * kLanes : kLanes;
      GroupSums<kBits, kRows, kPlanes> sums(x.starts + g);
      auto add_vectors = [&]<int kCount>() __attribute__((always_inline)) {
        unroll<kCount>([&]<int i>() __attribute__((always_inline)) {
          sums.template add<i>(load_words(p), quad, plane);
          p += kLanes;
          quad += kRows;
        });
      };
      const int next = c + w.group_size;
      for (; c + 32 <= next; c += 32)
        add_vectors.template operator()<kVectors>();
      if (c < next) {  // nvfp4's groups are of 16
        add_vectors.template operator()<kVectors / 2>();
        c = next;
      }
      sums.scale_into(scaled, load(scale));
      if (w.has_zeros)
        add_products<kRows>(load(scale + kLanes), x.sums + g, scaled);
    }
    add_in_steps(total, scaled, step);
  }
  unroll<kRows>([&]<int m>()
                    __attribute__((always_inline)) { result[m] = total[m]; });
}

template <ElementFormat kFormat, int kPlanes>
static void integer_tiles(const PanelMatrix& w,
                          const IntegerTile* tiles,
                          int num_tiles,
                          int begin,
                          int end,
                          float* y,
                          std::size_t y_stride,
                          std::uint32_t* room) {
  constexpr int kRows = kMaxIntegerRows;
  for (int panel = begin; panel < end; ++panel) {
    for (int part = 0; part < kParts; ++part) {
      open_part<kFormat, has_pairs(kRows, kPlanes)>(w, panel, part, room);
      for (int t = 0; t < num_tiles; ++t) {
        Floats totals[kRows];
        opened_part<kFormat, kPlanes>(w, tiles[t], room, totals);
        store_part(w,
                   totals,
                   tiles[t].num_rows,
                   panel,
                   part,
                   y + t * kRows * y_stride,
                   y_stride);
      }
    }
  }
}

// Tiles of the most rows from which on taking apart once for all pays.
inline constexpr int kLeastOpenedTiles = 3;

static int integer_tile_rows(int num_rows) {
  for (int rows = 1; rows < kMaxIntegerRows; rows *= 2) {
    if (num_rows <= rows) return rows;
  }
  return kMaxIntegerRows;
}

static void integer_matmul(const PanelMatrix& w,
                           const IntegerTile* tiles,
                           int num_tiles,
                           int begin,
                           int end,
                           float* y,
                           std::size_t y_stride,
                           std::uint32_t* room) {
  auto with_integers = [&](auto&& run) {
    with_format(w, [&]<ElementFormat kFormat>() {
      if constexpr (is_integer(kFormat)) run.template operator()<kFormat>();
    });
  };
  const int planes = tiles[0].planes;
  int full = 0;
  while (full < num_tiles && tiles[full].rows == kMaxIntegerRows) ++full;
  if (full < kLeastOpenedTiles) full = 0;
  if (full > 0) {
    with_integers([&]<ElementFormat kFormat>() {
      auto run =
          planes == 2 ? integer_tiles<kFormat, 2> : integer_tiles<kFormat, 1>;
      run(w, tiles, full, begin, end, y, y_stride, room);
    });
  }
  for (int t = full; t < num_tiles; ++t) {
    float* to = y + static_cast<std::size_t>(t) * kMaxIntegerRows * y_stride;
    with_integers([&]<ElementFormat kFormat>() {
      auto run_rows = [&]<int kRows>() {
        auto run = planes == 2 ? integer_tile<kFormat, kRows, 2>
                               : integer_tile<kFormat, kRows, 1>;
        run(w, tiles[t], begin, end, to, y_stride);
      };
      switch (tiles[t].rows) {
        case 1:
          return run_rows.template operator()<1>();
        case 2:
          return run_rows.template operator()<2>();
        case 4:
          return run_rows.template operator()<4>();
        default:
          return run_rows.template operator()<kMaxIntegerRows>();
      }
    });
  }
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
