#include "cache/kv_cache.h"

#include <mlx/mlx.h>

#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"

namespace mlxlm {
namespace {

TEST(KVCache, GrowsInStepsOf256) {
  KVCache cache;
  EXPECT_TRUE(cache.empty());
  EXPECT_EQ(cache.nbytes(), 0u);
  auto keys = seeded_rows(300, 1);
  auto values = seeded_rows(300, 2);
  for (auto [from, to] : {std::pair{0, 5}, {5, 6}, {6, 260}, {260, 300}}) {
    auto [k, v] = cache.update(range(keys, from, to), range(values, from, to));
    EXPECT_TRUE(same(k.plain(), range(keys, 0, to)));
    EXPECT_TRUE(same(v.plain(), range(values, 0, to)));
    EXPECT_EQ(cache.offset(), to);
  }
  auto state = std::get<CacheState::List>(cache.state().value);
  // 6 in use, then room for 254 new ones: 6 + 256.
  EXPECT_EQ(std::get<mx::array>(state[0].value).shape(2), 6 + 256 + 256 - 2);
}

TEST(KVCache, TrimsTheNewest) {
  KVCache cache;
  Sequence s(12);
  s.attend(cache, 0, 10);
  EXPECT_TRUE(cache.is_trimmable());
  EXPECT_EQ(cache.trim(-1), 0);
  EXPECT_EQ(cache.trim(4), 4);
  EXPECT_EQ(cache.offset(), 6);
  auto again = s.attend(cache, 6, 4);
  KVCache fresh;
  s.attend(fresh, 0, 6);
  EXPECT_TRUE(same(again, s.attend(fresh, 6, 4)));
  EXPECT_EQ(cache.trim(100), 10);
  EXPECT_EQ(cache.offset(), 0);
}

TEST(KVCache, PiecesEqualTheWhole) {
  Sequence s(11);
  for (int window : {0, 1, 4, 20}) {
    AttendSpec spec{.scale = 0.3f, .window_tokens = window};
    auto whole = attend_without_cache(s.q, s.k, s.v, spec);
    for (CachePtr cache : {make_kv_cache(), make_concatenate_cache()}) {
      for (auto [from, to] : {std::pair{0, 5}, {5, 6}, {6, 9}, {9, 11}}) {
        auto part = s.attend(*cache, from, to - from, spec);
        EXPECT_LT(largest_difference(part, range(whole, from, to)), 1e-6f)
            << cache->kind() << " window " << window << " from " << from;
      }
    }
  }
}

TEST(KVCache, NotCausalSeesEverything) {
  Sequence s(6);
  AttendSpec spec{.scale = 0.3f, .causal = false};
  KVCache cache;
  auto all = s.attend(cache, 0, 6, spec);
  // The last query sees all keys either way.
  auto causal = attend_without_cache(s.q, s.k, s.v, {.scale = 0.3f});
  EXPECT_LT(largest_difference(range(all, 5, 6), range(causal, 5, 6)), 1e-6f);
  EXPECT_GT(largest_difference(range(all, 0, 1), range(causal, 0, 1)), 1e-3f);
}

TEST(KVCache, RollsBack) {
  Sequence s(300);
  for (CachePtr cache :
       {make_kv_cache(), make_concatenate_cache(), make_chunked_cache(400)}) {
    s.attend(*cache, 0, 7);
    auto checkpoint = cache->checkpoint();
    auto next = s.attend(*cache, 7, 280);
    mx::eval(next);
    for (int times = 0; times < 2; ++times) {
      cache->rollback(*checkpoint);
      EXPECT_EQ(cache->offset(), 7);
      EXPECT_TRUE(same(s.attend(*cache, 7, 280), next)) << cache->kind();
    }
  }
  expect_error(ErrorKind::argument, "KVCache", [] {
    make_kv_cache()->rollback(*make_concatenate_cache()->checkpoint());
  });
  expect_error(ErrorKind::argument, "another cache", [] {
    make_kv_cache()->rollback(*make_kv_cache()->checkpoint());
  });
}

// Wherever the cache went meanwhile: checkpoints keep what would be lost.
TEST(KVCache, RollsBackToWhatWasCutAndOverwritten) {
  Sequence s(60);
  Sequence other(60);
  other.k = seeded_rows(60, 7);
  for (CachePtr cache : {make_kv_cache(), make_concatenate_cache()}) {
    SCOPED_TRACE(cache->kind());
    s.attend(*cache, 0, 10);
    auto early = cache->checkpoint();
    s.attend(*cache, 10, 10);
    auto late = cache->checkpoint();
    auto after_late = s.attend(*cache, 20, 5);
    mx::eval(after_late);
    cache->trim(20);
    auto other_way = other.attend(*cache, 5, 30);
    auto third = cache->checkpoint();
    auto after_third = other.attend(*cache, 35, 3);
    mx::eval(other_way, after_third);
    cache->rollback(*late);
    EXPECT_EQ(cache->offset(), 20);
    EXPECT_TRUE(same(s.attend(*cache, 20, 5), after_late));
    cache->rollback(*third);
    EXPECT_EQ(cache->offset(), 35);
    EXPECT_TRUE(same(other.attend(*cache, 35, 3), after_third));
    cache->rollback(*early);
    EXPECT_EQ(cache->offset(), 10);
    s.attend(*cache, 10, 10);
    EXPECT_TRUE(same(s.attend(*cache, 20, 5), after_late));
    cache->rollback(*late);
    EXPECT_TRUE(same(s.attend(*cache, 20, 5), after_late));
  }
}

TEST(KVCache, RefusesRowsOfAnotherModel) {
  KVCache cache;
  cache.update(seeded_rows(3, 1), seeded_rows(3, 2));
  // One head would be repeated silently.
  expect_error(ErrorKind::argument, "another model", [&] {
    cache.update(seeded_rows(3, 1, 8, 1), seeded_rows(3, 2, 8, 1));
  });
  EXPECT_EQ(cache.offset(), 3);
}

TEST(ConcatenateKVCache, TrimmedTokensAreGone) {
  Sequence s(9);
  ConcatenateKVCache cache;
  s.attend(cache, 0, 8);
  EXPECT_EQ(cache.trim(3), 3);
  auto part = s.attend(cache, 5, 4);
  auto whole = attend_without_cache(s.q, s.k, s.v, {.scale = 0.3f});
  EXPECT_LT(largest_difference(part, range(whole, 5, 9)), 1e-6f);
}

TEST(ChunkedKVCache, AttendsWithinChunks) {
  Sequence s(10);
  ChunkedKVCache cache(4);
  // Each chunk as if it stood alone.
  for (int from : {0, 4, 8}) {
    int to = std::min(from + 4, 10);
    auto alone = attend_without_cache(range(s.q, from, to),
                                      range(s.k, from, to),
                                      range(s.v, from, to),
                                      {.scale = 0.3f});
    for (int i = from; i < to; ++i) {
      auto part = s.attend(cache, i, 1);
      EXPECT_LT(largest_difference(part, range(alone, i - from, i - from + 1)),
                1e-6f)
          << i;
    }
  }
  EXPECT_EQ(cache.offset(), 10);
  EXPECT_EQ(cache.start_position(), 5);
  EXPECT_EQ(cache.size(), 5);
  // Before position 8, tokens of its chunk are gone.
  EXPECT_EQ(cache.capabilities().trimmable_tokens, 2);
  EXPECT_EQ(cache.trim(9), 2);
  expect_error(
      ErrorKind::argument, "at least one token", [] { make_chunked_cache(0); });
}

}  // namespace
}  // namespace mlxlm
