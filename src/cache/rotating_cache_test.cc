#include "cache/rotating_cache.h"

#include <mlx/mlx.h>

#include "cache/cache_test_support.h"

namespace mlxlm {
namespace {

// What attention over the tokens in (i - window, i] and the first `keep` gives.
mx::array windowed(const Sequence& s, int length, int window, int keep) {
  std::vector<std::uint8_t> seen;
  for (int i = 0; i < length; ++i) {
    for (int j = 0; j < length; ++j) {
      seen.push_back(j <= i && (j > i - window || j < keep));
    }
  }
  auto mask = mx::array(reinterpret_cast<bool*>(seen.data()), {length, length});
  kernels::AttentionParameters p{.scale = 0.3f, .mask = mask};
  return kernels::table().attention(
      range(s.q, 0, length), range(s.k, 0, length), range(s.v, 0, length), p);
}

TEST(RotatingKVCache, OneByOneIsASlidingWindow) {
  constexpr int kLength = 24;
  Sequence s(kLength);
  for (int prompt : {1, 3, 8, 13}) {
    RotatingKVCache cache(8);
    auto expected = windowed(s, kLength, 8, 0);
    auto first = s.attend(cache, 0, prompt);
    EXPECT_LT(largest_difference(first, range(expected, 0, prompt)), 1e-6f);
    for (int i = prompt; i < kLength; ++i) {
      auto part = s.attend(cache, i, 1);
      EXPECT_LT(largest_difference(part, range(expected, i, i + 1)), 1e-6f)
          << i;
      EXPECT_EQ(cache.offset(), i + 1);
      EXPECT_EQ(cache.size(), std::min(i + 1, 8));
      EXPECT_EQ(cache.is_trimmable(), i + 1 < 8);
    }
  }
}

TEST(RotatingKVCache, ChunksEqualTheWhole) {
  constexpr int kLength = 40;
  Sequence s(kLength);
  auto expected = windowed(s, kLength, 8, 0);
  for (int chunk : {2, 3, 7, 8, 9, 16}) {
    RotatingKVCache cache(8);
    for (int from = 0; from < kLength; from += chunk) {
      int count = std::min(chunk, kLength - from);
      auto part = s.attend(cache, from, count);
      EXPECT_LT(largest_difference(part, range(expected, from, from + count)),
                1e-6f)
          << "chunk " << chunk << " from " << from;
    }
  }
}

TEST(RotatingKVCache, SmallerWindowThanTheCache) {
  constexpr int kLength = 24;
  Sequence s(kLength);
  auto expected = windowed(s, kLength, 5, 0);
  AttendSpec spec{.scale = 0.3f, .window_tokens = 5};
  RotatingKVCache cache(8);
  for (int i = 0; i < kLength; ++i) {
    auto part = s.attend(cache, i, 1, spec);
    EXPECT_LT(largest_difference(part, range(expected, i, i + 1)), 1e-6f) << i;
  }
  RotatingKVCache mixed(8);
  int from = 0;
  for (int count : {3, 1, 1, 4, 1, 9, 1, 1, 1, 2}) {
    auto part = s.attend(mixed, from, count, spec);
    EXPECT_LT(largest_difference(part, range(expected, from, from + count)),
              1e-6f)
        << from;
    from += count;
  }
}

TEST(RotatingKVCache, KeepsTheFirstTokens) {
  constexpr int kLength = 30;
  Sequence s(kLength);
  // After the prompt, two are kept and the other six places rotate.
  auto expected = windowed(s, kLength, 6, 2);
  RotatingKVCache cache(8, 2);
  for (int i = 0; i < kLength; ++i) {
    auto part = s.attend(cache, i, 1);
    auto all = i < 8 ? attend_without_cache(range(s.q, 0, i + 1),
                                            range(s.k, 0, i + 1),
                                            range(s.v, 0, i + 1),
                                            {.scale = 0.3f})
                     : range(expected, 0, i + 1);
    EXPECT_LT(largest_difference(part, range(all, i, i + 1)), 1e-6f) << i;
  }
}

TEST(RotatingKVCache, TrimsUntilItRotates) {
  Sequence s(20);
  RotatingKVCache cache(8);
  s.attend(cache, 0, 6);
  EXPECT_EQ(cache.trim(2), 2);
  EXPECT_EQ(cache.offset(), 4);
  auto expected = windowed(s, 20, 8, 0);
  EXPECT_LT(largest_difference(s.attend(cache, 4, 2), range(expected, 4, 6)),
            1e-6f);
  EXPECT_TRUE(cache.is_trimmable_after(1));
  EXPECT_FALSE(cache.is_trimmable_after(2));
  EXPECT_EQ(cache.trim(1), 1);
  EXPECT_LT(largest_difference(s.attend(cache, 5, 1), range(expected, 5, 6)),
            1e-6f);
  s.attend(cache, 6, 3);
  EXPECT_FALSE(cache.is_trimmable());
  EXPECT_EQ(cache.trim(1), 0);
  EXPECT_EQ(cache.offset(), 9);
}

TEST(RotatingKVCache, RollsBackAfterRotation) {
  Sequence s(30);
  RotatingKVCache cache(8, 3);
  s.attend(cache, 0, 5);
  for (int i = 5; i < 12; ++i) {
    s.attend(cache, i, 1);
  }
  auto checkpoint = cache.checkpoint();
  auto one = s.attend(cache, 12, 1);
  auto several = s.attend(cache, 13, 6);
  mx::eval(one, several);
  cache.rollback(*checkpoint);
  EXPECT_EQ(cache.offset(), 12);
  EXPECT_TRUE(same(s.attend(cache, 12, 1), one));
  EXPECT_TRUE(same(s.attend(cache, 13, 6), several));
}

TEST(RotatingKVCache, GrowsPastOneStep) {
  RotatingKVCache cache(300);
  auto keys = seeded_rows(320, 1);
  for (int i = 0; i < 320; ++i) {
    cache.update(range(keys, i, i + 1), range(keys, i, i + 1));
    if (i == 255) {
      EXPECT_EQ(cache.nbytes(), 2u * 2 * 256 * 8 * 4);
    }
  }
  EXPECT_EQ(cache.nbytes(), 2u * 2 * 300 * 8 * 4);
  EXPECT_EQ(cache.index(), 20);
}

TEST(RotatingKVCache, RefusesWhatItCannotDo) {
  expect_error(
      ErrorKind::argument, "must be larger", [] { make_rotating_cache(4, 4); });
  expect_error(
      ErrorKind::argument, "can't keep", [] { make_rotating_cache(4, -1); });
  expect_error(ErrorKind::argument, "number of bits is 9", [] {
    make_rotating_cache(4)->to_quantized({9, 9, 64});
  });
}

}  // namespace
}  // namespace mlxlm
