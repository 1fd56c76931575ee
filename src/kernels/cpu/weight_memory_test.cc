#include "kernels/cpu/weight_memory.h"

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

namespace mlxlm::kernels::cpu {
namespace {

TEST(WeightMemory, PiecesAreApartAndAligned) {
  constexpr std::size_t kSizes[] = {1, 63, 64, 5000, 300000, 1, 40 << 20, 65};
  std::vector<WeightMemory> pieces;
  for (std::size_t size : kSizes) {
    pieces.emplace_back(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pieces.back().data()) % 64, 0u);
    std::memset(pieces.back().data(), int(pieces.size()), size);
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(pieces[i].data()[0], std::byte(i + 1));
    EXPECT_EQ(pieces[i].data()[kSizes[i] - 1], std::byte(i + 1));
  }
}

TEST(WeightMemory, PiecesInTurnLieSideBySide) {
  const WeightMemory first(std::size_t{1} << 20);  // more than is left
  const WeightMemory second(6400);
  const WeightMemory third(6400);
  EXPECT_EQ(third.data(), second.data() + 6400);
}

TEST(WeightMemory, TheLastPieceTakesItsBlockAlong) {
  constexpr std::size_t kSize = std::size_t{100} << 20;
  const std::size_t before = mlx::core::get_active_memory();
  {
    std::optional<WeightMemory> piece(kSize);
    const WeightMemory copy = *piece;
    piece.reset();
    EXPECT_GE(mlx::core::get_active_memory(), before + kSize);
  }
  EXPECT_EQ(mlx::core::get_active_memory(), before);
}

}  // namespace
}  // namespace mlxlm::kernels::cpu
