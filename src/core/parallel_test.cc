#include "core/parallel.h"

#include <atomic>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace mlxlm {
namespace {

TEST(Parallel, EveryIndexIsVisitedOnce) {
  for (std::size_t count : {0u, 1u, 7u, 1000u}) {
    std::vector<std::atomic<int>> visits(count);
    parallel_for(count, 3, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        ++visits[i];
      }
    });
    for (auto& visit : visits) {
      EXPECT_EQ(visit, 1);
    }
  }
}

TEST(Parallel, AnExceptionComesOutAfterAllIsDone) {
  EXPECT_THROW(parallel_for(100,
                            1,
                            [](std::size_t, std::size_t) {
                              throw std::runtime_error("part");
                            }),
               std::runtime_error);
}

}  // namespace
}  // namespace mlxlm
