#include "kernels/cpu/project.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

namespace mlxlm::kernels::cpu {
namespace {

struct SumsTag {};
struct TilesTag {};

// A run of panels of one product.
struct Piece {
  const Product* product;
  int begin;
  int end;
};

// Weight bytes that one piece covers at most, so that they stay in the second
// cache level while many tiles pass over them.
constexpr std::size_t kPieceBytes = 192 * 1024;

// Pieces small enough to share out evenly, large enough to be worth a task.
std::vector<Piece> split(std::span<const Product> products, int num_columns) {
  std::size_t total_panels = 0;
  for (const Product& each : products) {
    total_panels += each.matrix->num_panels();
  }
  const std::size_t even = total_panels / (4 * num_threads()) + 1;
  const std::size_t least = 16384 / (num_columns * kPanelRows) + 1;
  std::vector<Piece> pieces;
  for (const Product& each : products) {
    const std::size_t most =
        std::max<std::size_t>(kPieceBytes / each.matrix->panel_bytes, 1);
    const int size = static_cast<int>(
        std::min(std::max(even, least), std::max(most, least)));
    const int panels = each.matrix->num_panels();
    for (int begin = 0; begin < panels; begin += size) {
      pieces.push_back({&each, begin, std::min(begin + size, panels)});
    }
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

void project_few(const float* x,
                 int num_rows,
                 int num_columns,
                 std::span<const Product> products) {
  const IsaKernels& isa = isa_kernels();
  // Sums per row and group, for each group size among the products.
  std::vector<std::size_t> offsets;
  std::size_t size = 0;
  for (const Product& each : products) {
    offsets.push_back(size);
    size += static_cast<std::size_t>(num_rows) *
            (num_columns / each.matrix->group_size);
  }
  float* sums = scratch<SumsTag>(size);
  for (std::size_t i = 0; i < products.size(); ++i) {
    const PanelMatrix& w = *products[i].matrix;
    if (w.format > ElementFormat::u8) continue;
    const int groups = num_columns / w.group_size;
    for (int m = 0; m < num_rows; ++m) {
      isa.group_sums(x + static_cast<std::size_t>(m) * num_columns,
                     num_columns,
                     w.group_size,
                     sums + offsets[i] + m * groups);
    }
  }
  run(split(products, num_columns), [&](const Piece& piece) {
    const Product& p = *piece.product;
    isa.matvec(*p.matrix,
               x,
               num_columns,
               sums + offsets[piece.product - products.data()],
               num_rows,
               piece.begin,
               piece.end,
               p.y,
               p.matrix->num_rows);
    add_bias(piece, num_rows);
  });
}

void project_many(const float* x,
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
  run(split(products, num_columns), [&](const Piece& piece) {
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

}  // namespace

void project(const float* x,
             int num_rows,
             int num_columns,
             std::span<const Product> products) {
  if (num_rows <= kMaxVectorRows) {
    project_few(x, num_rows, num_columns, products);
  } else {
    project_many(x, num_rows, num_columns, products);
  }
}

}  // namespace mlxlm::kernels::cpu
