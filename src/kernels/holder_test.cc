#include <memory>
#include <optional>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/mlx_compat/gpu_memory.h"

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

}  // namespace
}  // namespace mlxlm::kernels
