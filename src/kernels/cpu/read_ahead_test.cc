#include "kernels/cpu/read_ahead.h"

#include <vector>

#include <gtest/gtest.h>

namespace mlxlm::kernels::cpu {
namespace {

// How often each byte is asked for by two clusters of so many threads.
std::vector<int> asked(const ReadAhead& ahead,
                       const std::vector<std::byte>& memory,
                       int threads,
                       int others) {
  std::vector<int> times(memory.size());
  for (int i = 0; i < threads + others; ++i) {
    ReadAhead::Reader reader{.index = i < threads ? i : i - threads,
                             .first = i < threads ? 0 : threads,
                             .count = i < threads ? threads : others,
                             .all = threads + others};
    while (true) {
      const auto bytes = ahead.next(reader);
      if (bytes.empty()) break;
      for (const std::byte& each : bytes) ++times.at(&each - memory.data());
    }
    EXPECT_TRUE(ahead.next(reader).empty());
  }
  return times;
}

TEST(ReadAhead, EveryPieceOnceAndNothingElse) {
  std::vector<std::byte> memory(300000);
  for (auto [threads, others] : {std::pair{2, 0}, {1, 0}, {3, 2}, {8, 8}}) {
    for (std::size_t piece : {64, 100, 4096, 19000}) {
      ReadAhead ahead;
      const std::size_t bytes = 10 * piece + 7;
      ahead.set({memory.data(), bytes, piece});
      const auto times = asked(ahead, memory, threads, others);
      for (std::size_t i = 0; i < times.size(); ++i) {
        ASSERT_EQ(times[i], i < 10 * piece ? 1 : 0)
            << i << " of pieces of " << piece;
      }
    }
  }
}

TEST(ReadAhead, NoMoreThanACacheHolds) {
  std::vector<std::byte> memory(std::size_t{1} << 20);
  ReadAhead ahead;
  ahead.set({memory.data(), memory.size(), 4096});
  ReadAhead::Reader reader;
  std::size_t count = 0;
  for (auto bytes = ahead.next(reader); !bytes.empty();
       bytes = ahead.next(reader)) {
    count += bytes.size();
  }
  EXPECT_GT(count, 0u);
  EXPECT_LE(count, memory.size() / 2);
}

TEST(ReadAhead, NewMemoryIsAskedForFromItsBeginning) {
  std::vector<std::byte> memory(10000);
  ReadAhead ahead;
  ReadAhead::Reader reader;
  EXPECT_FALSE(ask_for_some(ahead, reader));
  ahead.set({memory.data(), memory.size(), 1000});
  EXPECT_TRUE(ask_for_some(ahead, reader));
  EXPECT_TRUE(ask_for_some(ahead, reader));
  ahead.set({memory.data() + 5000, 5000, 1000});
  EXPECT_EQ(ahead.next(reader).data(), memory.data() + 5000);
  // Gone in the meantime.
  ahead.set({nullptr, 0, 0});
  EXPECT_FALSE(ask_for_some(ahead, reader));
}

}  // namespace
}  // namespace mlxlm::kernels::cpu
