#include "kernels/mlx_compat/gpu_memory.h"

#include <memory>
#include <optional>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

namespace mlxlm::kernels {
namespace {

TEST(HolderOf, KeepsArraysUntilItsNodeIsComputed) {
  std::weak_ptr<mx::allocator::Data> held;
  std::optional<mx::array> result;
  {
    auto array = mx::ones({1000});
    array.eval();
    held = array.data_shared_ptr();
    result = mx::depends({mx::add(mx::ones({3}), mx::array(1.0f))},
                         {holder_of({array})})[0];
  }
  EXPECT_FALSE(held.expired());
  EXPECT_EQ(mx::sum(*result).item<float>(), 6.0f);
  mx::synchronize();
  EXPECT_TRUE(held.expired());
}

TEST(IntegersOf, ReadsArraysThatAreNotEvaluatedOrNotInOnePiece) {
  const auto x = mx::array({1, 2, 3, 4, 5, 6}, {2, 3}, mx::int32);
  EXPECT_EQ(integers_of(x), (std::vector{1, 2, 3, 4, 5, 6}));
  const auto doubled = mx::add(x, x);
  EXPECT_EQ(integers_of(mx::transpose(doubled)),
            (std::vector{2, 8, 4, 10, 6, 12}));
  EXPECT_EQ(integers_of(mx::slice(doubled, {1, 0}, {2, 3})),
            (std::vector{8, 10, 12}));
}

}  // namespace
}  // namespace mlxlm::kernels
