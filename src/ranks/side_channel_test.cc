#include "ranks/side_channel.h"

#include <cstdint>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace mlxlm {
namespace {

constexpr char kHost[] = "127.0.0.1";
constexpr std::uint64_t kSecret = 0x123456789abcdef0;

TEST(SideChannel, EveryRankGetsTheTextsOfTheFirst) {
  SideChannel first(kHost);
  std::string got[2];
  auto join = [&](int rank) {
    SideChannel own(kHost, first.port(), rank, 3, kSecret);
    own.watch();
    own.share("not this");
    got[rank - 1] = own.share("");
    own.finish();
  };
  std::thread one(join, 1);
  std::thread two(join, 2);
  first.accept_all(3, kSecret);
  first.watch();
  const std::string text(100000, 'x');
  EXPECT_EQ(first.share("a"), "a");
  EXPECT_EQ(first.share(text), text);
  one.join();
  two.join();
  first.finish();
  EXPECT_EQ(got[0], text);
  EXPECT_EQ(got[1], text);
}

TEST(SideChannel, StrangersAreTurnedAway) {
  SideChannel first(kHost);
  std::thread others([&] {
    SideChannel stranger(kHost, first.port(), 1, 2, kSecret + 1);
    SideChannel out_of_range(kHost, first.port(), 2, 2, kSecret);
    SideChannel own(kHost, first.port(), 1, 2, kSecret);
    own.watch();
    EXPECT_EQ(own.share(""), "word");
    own.finish();
  });
  first.accept_all(2, kSecret);
  first.watch();
  first.share("word");
  others.join();
}

// The ranks are threads of a process of their own, of which the loss of one of
// them ends all.
TEST(SideChannelDeathTest, ALostRankEndsTheOthers) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        SideChannel first(kHost);
        std::thread([&] {
          SideChannel lost(kHost, first.port(), 1, 2, kSecret);
        }).detach();
        first.accept_all(2, kSecret);
        first.watch();
        std::this_thread::sleep_for(std::chrono::seconds(20));
      },
      testing::ExitedWithCode(1),
      "rank 0 of 2 gives up: rank 1 has ended before its work was done");
}

}  // namespace
}  // namespace mlxlm
