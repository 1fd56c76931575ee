// Layers that share keys and values: the answer to the same queries is the
// same, in every kind and state.
#include "cache/batch_cache.h"
#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"

namespace mlxlm {
namespace {

void expect_same_again(Cache& cache, const AttendSpec& spec = {.scale = 0.3f}) {
  const Sequence sequence(48, 32);
  int first = 0;
  // A long prompt, a short one, then token by token beyond every window.
  for (int count : {13, 4, 1, 1, 1, 7, 1, 1, 1, 1, 1, 1, 1}) {
    auto answer = sequence.attend(cache, first, count, spec);
    auto again =
        cache.attend_again(range(sequence.q, first, first + count), spec);
    EXPECT_LE(largest_difference(answer, again), 1e-5f)
        << cache.kind() << " from " << first;
    first += count;
  }
  EXPECT_EQ(cache.offset(), first);
}

TEST(AttendAgain, EqualsTheLatestAnswer) {
  expect_same_again(*make_kv_cache());
  expect_same_again(*make_kv_cache(), {.scale = 0.3f, .window_tokens = 5});
  expect_same_again(*make_quantized_cache(bits(8)));
  expect_same_again(*make_rotating_cache(8),
                    {.scale = 0.3f, .window_tokens = 8});
  expect_same_again(*make_rotating_cache(8, 2));
  expect_same_again(*make_rotating_cache(8, 0, bits(4)),
                    {.scale = 0.3f, .window_tokens = 8});
  expect_same_again(*make_rotating_cache(16),
                    {.scale = 0.3f, .window_tokens = 6});
}

TEST(AttendAgain, RowsOfABatchReadTheirOwn) {
  const Sequence sequence(12, 32);
  BatchCache batch({make_kv_cache(), make_kv_cache()}, {9, 3});
  const AttendSpec spec{.scale = 0.3f};
  auto answer = sequence.attend(batch, 0, 12, spec);
  EXPECT_LE(largest_difference(answer, batch.attend_again(sequence.q, spec)),
            1e-5f);
}

TEST(AttendAgain, OtherKindsRefuse) {
  auto cache = make_chunked_cache(4);
  EXPECT_THROW(cache->attend_again(seeded_rows(1, 1), {}), Error);
}

}  // namespace
}  // namespace mlxlm
