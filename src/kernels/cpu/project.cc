#include "kernels/cpu/project.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/seam.h"

namespace mlxlm::kernels::cpu {
namespace {

struct TilesTag {};
struct QuadsTag {};
struct OpenedTag {};

// A run of panels of one product.
struct Piece {
  const Product* product;
  int begin;
  int end;
};

// Weight bytes that one piece covers at most, so that they stay in the second
// cache level while many tiles pass over them.
constexpr std::size_t kPieceBytes = 192 * 1024;

// Tiles that one part of a panel is taken apart for: enough to be worth it, few
// enough to stay in the second cache level while many parts pass over them.
constexpr int kLeastTilesTogether = 8;
constexpr std::size_t kTogetherBytes = 256 * 1024;

// Few enough to share out evenly all the panels that are read at once, enough
// to be worth a task; a multiple of `panels_at_once`.
int panels_per_piece(const PanelMatrix& matrix,
                     std::size_t total_panels,
                     std::size_t panels_at_once) {
  const std::size_t even = total_panels / (4 * num_threads()) + 1;
  const std::size_t least = 16384 / (matrix.num_columns * kPanelRows) + 1;
  const std::size_t most =
      std::max<std::size_t>(kPieceBytes / matrix.panel_bytes, 1);
  const std::size_t good =
      std::min(std::max(even, least), std::max(most, least));
  return static_cast<int>((good + panels_at_once - 1) / panels_at_once *
                          panels_at_once);
}

std::size_t num_panels(std::span<const Product> products) {
  std::size_t count = 0;
  for (const Product& each : products) count += each.matrix->num_panels();
  return count;
}

std::vector<Piece> split(std::span<const Product> products,
                         std::size_t panels_at_once) {
  const std::size_t total_panels = num_panels(products);
  std::vector<Piece> pieces;
  for (const Product& each : products) {
    const int size =
        panels_per_piece(*each.matrix, total_panels, panels_at_once);
    const int panels = each.matrix->num_panels();
    for (int begin = 0; begin < panels; begin += size) {
      pieces.push_back({&each, begin, std::min(begin + size, panels)});
    }
  }
  if (num_clusters() > 1 && products.size() > 1) {
    // As the panels were shared out when they were packed (parallel_for()).
    auto place = [](const Piece& piece) {
      return static_cast<double>(piece.begin) /
             piece.product->matrix->num_panels();
    };
    std::ranges::stable_sort(pieces, std::less<>(), place);
  }
  return pieces;
}

void run(const std::vector<Piece>& pieces,
         const std::function<void(const Piece&)>& task) {
  parallel_for(static_cast<int>(pieces.size()),
               [&](int i) { task(pieces[i]); });
}

void add_bias(const Piece& piece, int num_rows) {
  const Product& p = *piece.product;
  if (p.bias == nullptr) {
    return;
  }
  const int size = p.matrix->num_rows;
  const int begin = piece.begin * kPanelRows;
  const int end = std::min(piece.end * kPanelRows, size);
  for (int m = 0; m < num_rows; ++m) {
    float* y = p.y + static_cast<std::size_t>(m) * size;
    for (int i = begin; i < end; ++i) {
      y[i] += p.bias[i];
    }
  }
}

void project_floats(const float* x,
                    int num_rows,
                    int num_columns,
                    std::span<const Product> products) {
  const IsaKernels& isa = isa_kernels();
  const int tile = std::min(isa.max_tile_rows, num_rows);
  const int num_tiles = (num_rows + tile - 1) / tile;
  const std::size_t tile_floats =
      static_cast<std::size_t>(isa.tile_rows(tile)) * num_columns;
  float* tiles = scratch<TilesTag>(tile_floats * num_tiles);
  auto rows_in = [&](int t) { return std::min(tile, num_rows - t * tile); };
  parallel_for(num_tiles, [&](int t) {
    isa.pack_tile(x + static_cast<std::size_t>(t) * tile * num_columns,
                  num_columns,
                  rows_in(t),
                  num_columns,
                  tiles + t * tile_floats);
  });
  run(split(products, kPanelsAtOnce), [&](const Piece& piece) {
    const Product& p = *piece.product;
    const std::size_t stride = p.matrix->num_rows;
    for (int t = 0; t < num_tiles; ++t) {
      isa.matmul(*p.matrix,
                 tiles + t * tile_floats,
                 rows_in(t),
                 piece.begin,
                 piece.end,
                 p.y + t * tile * stride,
                 stride);
    }
    add_bias(piece, num_rows);
  });
}

// x in tiles of integers, for one size of groups: of 16 bits, which change next
// to nothing, or in the fastest mode of 8, which change the most probable token
// of one text position in 30 (docs/PERFORMANCE.md).
class IntegerRows {
 public:
  IntegerRows(const float* x,
              int num_rows,
              const PanelMatrix& like,
              std::size_t first_float)
      : x_(x),
        num_rows_(num_rows),
        like_(like),
        planes_(cpu_mode() == CpuMode::fastest ? 1 : 2),
        rows_per_tile_(std::min(isa_kernels().max_integer_tile_rows, num_rows)),
        first_float_(first_float) {}

  int num_tiles() const {
    return (num_rows_ + rows_per_tile_ - 1) / rows_per_tile_;
  }
  int rows_per_tile() const { return rows_per_tile_; }
  bool suits(const PanelMatrix& w) const {
    return w.group_size == like_.group_size && w.format == like_.format;
  }
  std::size_t num_floats() const { return tile_floats() * num_tiles(); }
  std::size_t tile_bytes() const { return tile_floats() * sizeof(float); }

  void fill(int t, float* memory) const {
    const IntegerTile tile = this->tile(t, memory);
    isa_kernels().round_rows(
        x_ + static_cast<std::size_t>(t) * rows_per_tile_ * like_.num_columns,
        like_,
        tile,
        const_cast<std::uint32_t*>(tile.quads),
        const_cast<float*>(tile.steps),
        const_cast<std::int32_t*>(tile.starts),
        const_cast<float*>(tile.sums));
  }

  IntegerTile tile(int t, const float* memory) const {
    IntegerTile tile;
    tile.num_rows = std::min(rows_per_tile_, num_rows_ - t * rows_per_tile_);
    tile.rows = isa_kernels().integer_tile_rows(tile.num_rows);
    tile.planes = planes_;
    const float* base = memory + first_float_ + t * tile_floats();
    const std::size_t groups =
        static_cast<std::size_t>(num_groups()) * tile.rows;
    tile.sums = base;
    tile.starts = reinterpret_cast<const std::int32_t*>(base + groups);
    tile.steps = base + 2 * groups;
    tile.quads = reinterpret_cast<const std::uint32_t*>(
        tile.steps + static_cast<std::size_t>(num_steps()) * tile.rows);
    return tile;
  }

 private:
  int num_groups() const { return like_.num_columns / like_.group_size; }
  int num_steps() const {
    const int together = step_columns(planes_, like_.group_size);
    return (like_.num_columns + together - 1) / together;
  }
  std::size_t tile_floats() const {
    const int rows = isa_kernels().integer_tile_rows(rows_per_tile_);
    return static_cast<std::size_t>(rows) *
           (2 * num_groups() + num_steps() + planes_ * like_.num_columns / 4);
  }

  const float* x_;
  int num_rows_;
  PanelMatrix like_;  // whose groups and format tiles are for
  int planes_;        // bytes of an integer
  int rows_per_tile_;
  std::size_t first_float_;  // of the memory that all share
};

void project_integers(const float* x,
                      int num_rows,
                      std::span<const Product> products) {
  const IsaKernels& isa = isa_kernels();
  std::vector<IntegerRows> kinds;  // one per size of groups and format
  std::vector<int> kind_of;        // of each product
  std::size_t floats = 0;
  for (const Product& each : products) {
    auto found =
        std::find_if(kinds.begin(), kinds.end(), [&](const IntegerRows& kind) {
          return kind.suits(*each.matrix);
        });
    kind_of.push_back(static_cast<int>(found - kinds.begin()));
    if (found == kinds.end()) {
      kinds.emplace_back(x, num_rows, *each.matrix, floats);
      floats += kinds.back().num_floats();
    }
  }
  float* memory = scratch<QuadsTag>(floats);
  const int num_tiles = kinds[0].num_tiles();
  parallel_for(num_tiles, [&](int t) {
    for (const auto& kind : kinds) kind.fill(t, memory);
  });
  run(split(products, 1), [&](const Piece& piece) {
    const Product& p = *piece.product;
    const IntegerRows& rows = kinds[kind_of[piece.product - products.data()]];
    const std::size_t stride = p.matrix->num_rows;
    std::vector<IntegerTile> tiles;
    for (int t = 0; t < num_tiles; ++t) tiles.push_back(rows.tile(t, memory));
    auto* room = reinterpret_cast<std::uint32_t*>(
        scratch<OpenedTag>(opened_part_words(*p.matrix)));
    const int together =
        std::max(kLeastTilesTogether,
                 static_cast<int>(kTogetherBytes / rows.tile_bytes()));
    for (int t = 0; t < num_tiles; t += together) {
      isa.integer_matmul(
          *p.matrix,
          tiles.data() + t,
          std::min(together, num_tiles - t),
          piece.begin,
          piece.end,
          p.y + static_cast<std::size_t>(t) * rows.rows_per_tile() * stride,
          stride,
          room);
    }
    add_bias(piece, num_rows);
  });
}

bool in_integers(const Product& product) {
  return cpu_mode() != CpuMode::exact && is_integer(product.matrix->format);
}

}  // namespace

void project(const float* x,
             int num_rows,
             int num_columns,
             std::span<const Product> products) {
  if (cpu_mode() == CpuMode::exact) {
    return project_floats(x, num_rows, num_columns, products);
  }
  if (std::all_of(products.begin(), products.end(), in_integers)) {
    return project_integers(x, num_rows, products);
  }
  std::vector<Product> integers(products.begin(), products.end());
  const auto floats =
      std::stable_partition(integers.begin(), integers.end(), in_integers);
  project_floats(x, num_rows, num_columns, {floats, integers.end()});
  if (floats != integers.begin()) {
    project_integers(x, num_rows, {integers.begin(), floats});
  }
}

void project_later(std::span<const Product> products) {
  if (products.empty()) return;
  const std::size_t panels = num_panels(products);
  const int at_once = in_integers(products[0]) ? 1 : kPanelsAtOnce;
  // Several clusters go through all products together: each begins with what it
  // has of the first one.
  if (num_clusters() > 1) products = products.first(1);
  ReadLater later;
  products = products.first(std::min(products.size(), later.runs.size()));
  auto run = later.runs.begin();
  for (const Product& each : products) {
    const PanelMatrix& matrix = *each.matrix;
    const int size = panels_per_piece(matrix, panels, at_once);
    *run++ = {matrix.data,
              size * matrix.panel_bytes,
              (matrix.num_panels() + size - 1) / size};
  }
  read_ahead(later);
}

}  // namespace mlxlm::kernels::cpu
