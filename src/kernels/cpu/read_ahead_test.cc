#include "kernels/cpu/read_ahead.h"

#include <vector>

#include <gtest/gtest.h>

namespace mlxlm::kernels::cpu {
namespace {

// How often each byte is asked for by so many threads.
std::vector<int> asked(const ReadAhead& ahead,
                       const std::vector<std::byte>& memory,
                       int num_threads) {
  std::vector<int> times(memory.size());
  for (int i = 0; i < num_threads; ++i) {
    ReadAhead::Reader reader{.thread = i, .num_threads = num_threads};
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
  for (int num_threads : {1, 2, 5, 16}) {
    for (std::size_t piece : {64, 100, 4096, 19000}) {
      ReadAhead ahead;
      ahead.set({{{{memory.data() + 50, piece, 7},
                   {memory.data() + 10 * piece, piece, 1},
                   {memory.data() + 12 * piece, piece / 2, 3}}}});
      const auto times = asked(ahead, memory, num_threads);
      for (std::size_t i = 0; i < times.size(); ++i) {
        const bool is_asked_for =
            (i >= 50 && i < 50 + 7 * piece) ||
            (i >= 10 * piece && i < 11 * piece) ||
            (i >= 12 * piece && i < 12 * piece + piece / 2 * 3);
        ASSERT_EQ(times[i], is_asked_for ? 1 : 0)
            << i << " of pieces of " << piece;
      }
    }
  }
}

// The same pieces as the thread pool gives a thread to begin with.
TEST(ReadAhead, AThreadsOwnPiecesInOrder) {
  std::vector<std::byte> memory(10000);
  ReadAhead ahead;
  ahead.set({{{{memory.data(), 1000, 5}, {memory.data() + 6000, 1000, 2}}}});
  ReadAhead::Reader reader{.thread = 1, .num_threads = 2};
  ASSERT_EQ(share_begin(1, 2, 7), 4);
  EXPECT_EQ(ahead.next(reader).data(), memory.data() + 4000);
  auto bytes = ahead.next(reader);
  while (bytes.data() < memory.data() + 5000) bytes = ahead.next(reader);
  EXPECT_EQ(bytes.data(), memory.data() + 6000);
}

TEST(ReadAhead, NoMoreThanACacheHolds) {
  std::vector<std::byte> memory(std::size_t{1} << 20);
  ReadAhead ahead;
  ahead.set({{{{memory.data(), 4096, 256}}}});
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
  ahead.set({{{{memory.data(), 1000, 10}}}});
  EXPECT_TRUE(ask_for_some(ahead, reader));
  EXPECT_TRUE(ask_for_some(ahead, reader));
  ahead.set({{{{memory.data() + 5000, 1000, 5}}}});
  EXPECT_EQ(ahead.next(reader).data(), memory.data() + 5000);
  // Gone in the meantime.
  ahead.set({});
  EXPECT_FALSE(ask_for_some(ahead, reader));
}

}  // namespace
}  // namespace mlxlm::kernels::cpu
