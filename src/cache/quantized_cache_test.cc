#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_test_support.h"
#include "cache/concatenate_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "mlxlm/error.h"

namespace mlxlm {
namespace {

TEST(QuantizedKVCache, ErrorShrinksWithBits) {
  Sequence s(9, 64);
  auto exact = attend_without_cache(s.q, s.k, s.v, {.scale = 0.1f});
  float previous = 10;
  for (int num_bits : {2, 3, 4, 5, 6, 8}) {
    KVCache cache(bits(num_bits));
    std::vector<mx::array> parts;
    for (auto [from, to] : {std::pair{0, 5}, {5, 6}, {6, 9}}) {
      parts.push_back(s.attend(cache, from, to - from, {.scale = 0.1f}));
    }
    float error = largest_difference(mx::concatenate(parts, 2), exact);
    EXPECT_LT(error, previous) << num_bits;
    previous = error;
  }
  EXPECT_LT(previous, 0.02f);
}

TEST(QuantizedKVCache, ConversionEqualsQuantizingFromTheStart) {
  Sequence s(10, 64);
  for (int group_size : {32, 64}) {
    KVCache plain;
    s.attend(plain, 0, 7);
    auto converted = plain.to_quantized(bits(4, group_size));
    KVCache direct(bits(4, group_size));
    s.attend(direct, 0, 7);
    EXPECT_EQ(converted->offset(), 7);
    EXPECT_TRUE(same(s.attend(*converted, 7, 3), s.attend(direct, 7, 3)));
    EXPECT_EQ(converted->nbytes(), direct.nbytes());
  }
}

TEST(QuantizedKVCache, TrimsAndRollsBack) {
  Sequence s(280, 32);
  KVCache cache(bits(8));
  s.attend(cache, 0, 6);
  auto checkpoint = cache.checkpoint();
  auto next = s.attend(cache, 6, 270);
  mx::eval(next);
  EXPECT_EQ(cache.trim(270), 270);
  EXPECT_TRUE(same(s.attend(cache, 6, 270), next));
  cache.rollback(*checkpoint);
  EXPECT_EQ(cache.offset(), 6);
  EXPECT_TRUE(same(s.attend(cache, 6, 270), next));
}

TEST(QuantizedKVCache, RefusesSizesThatDontFit) {
  expect_error(ErrorKind::argument, "group size is 48", [] {
    make_quantized_cache(bits(4, 48));
  });
  expect_error(ErrorKind::argument, "number of bits is 7", [] {
    make_quantized_cache({8, 7, 64});
  });
  Sequence s(3, 16);
  KVCache cache(bits(4));
  expect_error(ErrorKind::argument, "heads have 16 numbers", [&] {
    s.attend(cache, 0, 3);
  });
  EXPECT_TRUE(cache.empty());
  auto rotating = make_rotating_cache(8, 0, bits(4));
  expect_error(ErrorKind::argument, "heads have 16 numbers", [&] {
    s.attend(*rotating, 0, 3);
  });
  EXPECT_TRUE(rotating->empty());
}

// Quantizes and restores.
mx::array rounded(const mx::array& rows, int num_bits) {
  auto parts = mx::quantize(rows, 32, num_bits);
  return mx::dequantize(parts[0], parts[1], parts[2], 32, num_bits);
}

TEST(QuantizedKVCache, KeysAndValuesHaveTheirOwnBitsAndSinksWork) {
  Sequence s(9, 64);
  AttendSpec spec{.scale = 0.1f, .sinks = mx::array({0.5f, 1.0f, -1.0f, 0.0f})};
  KVCache cache(KvQuantization{8, 3, 32});
  auto part = s.attend(cache, 0, 9, spec);
  auto expected =
      attend_without_cache(s.q, rounded(s.k, 8), rounded(s.v, 3), spec);
  EXPECT_LT(largest_difference(part, expected), 1e-5f);
  EXPECT_EQ(cache.capabilities().quantization, (KvQuantization{8, 3, 32}));
  EXPECT_LT(cache.nbytes(), KVCache(bits(8)).nbytes() + 300000);
}

// A rotating cache of quantized rows attends to what a float one of the
// rounded rows does.
TEST(QuantizedRotatingKVCache, EqualsRotatingOverRoundedRows) {
  Sequence s(30, 64);
  Sequence near = s;
  near.k = rounded(s.k, 4);
  near.v = rounded(s.v, 4);
  for (int keep : {0, 2}) {
    RotatingKVCache quantized(8, keep, bits(4));
    RotatingKVCache plain(8, keep);
    int from = 0;
    for (int count : {3, 1, 1, 4, 1, 9, 1, 1, 1, 2, 1, 1}) {
      auto part = s.attend(quantized, from, count);
      EXPECT_LT(largest_difference(part, near.attend(plain, from, count)),
                1e-5f)
          << keep << " from " << from;
      EXPECT_EQ(quantized.index(), plain.index());
      from += count;
    }
    EXPECT_EQ(quantized.kind(), "QuantizedRotatingKVCache");
    EXPECT_LT(quantized.nbytes() * 5, plain.nbytes());
  }
}

TEST(QuantizedRotatingKVCache, ConversionKeepsPlaceAndOrder) {
  Sequence s(40, 64);
  for (int prompt : {3, 8, 13, 20}) {
    RotatingKVCache direct(8, 2, bits(8));
    RotatingKVCache plain(8, 2);
    for (int i = 0; i < prompt; ++i) {
      s.attend(direct, i, 1);
      s.attend(plain, i, 1);
    }
    auto converted = plain.to_quantized(bits(8));
    for (auto [from, count] : {std::pair{0, 1}, {1, 4}, {5, 1}, {6, 1}}) {
      EXPECT_TRUE(same(s.attend(*converted, prompt + from, count),
                       s.attend(direct, prompt + from, count)))
          << prompt << " from " << from;
    }
    EXPECT_EQ(converted->to_quantized(bits(8)), nullptr);
  }
}

TEST(QuantizePromptCache, StartsAtTheGivenOffset) {
  Sequence s(8, 32);
  PromptCache cache{make_kv_cache(), make_kv_cache(), make_arrays_cache(1)};
  s.attend(*cache[0], 0, 8);
  s.attend(*cache[1], 0, 4);
  quantize_prompt_cache(cache, 5, bits(4));
  EXPECT_EQ(cache[0]->kind(), "QuantizedKVCache");
  EXPECT_EQ(cache[1]->kind(), "KVCache");
  std::string log;
  set_log_handler([&](LogLevel, std::string_view text) { log += text; });
  quantize_prompt_cache(cache, 0, bits(4));
  quantize_prompt_cache(cache, 0, bits(4));
  set_log_handler({});
  EXPECT_EQ(log,
            "the KV cache of 1 of 3 layers is quantized to 4 bits; left as "
            "they are: 1 ArraysCache");
  EXPECT_EQ(cache[1]->kind(), "QuantizedKVCache");
  EXPECT_EQ(cache[2]->kind(), "ArraysCache");
  PromptCache rotating{make_rotating_cache(8)};
  quantize_prompt_cache(rotating, 1, bits(4));  // not there yet
  EXPECT_EQ(rotating[0]->kind(), "RotatingKVCache");
  quantize_prompt_cache(rotating, 0, bits(4));
  EXPECT_EQ(rotating[0]->kind(), "QuantizedRotatingKVCache");
}

TEST(ArraysCache, MasksPaddingAndAdvances) {
  ArraysCache plain(2);
  EXPECT_TRUE(plain.empty());
  EXPECT_FALSE(plain.make_mask(4));
  plain.set(0, mx::ones({1, 3}));
  EXPECT_FALSE(plain.empty());
  EXPECT_EQ(plain.nbytes(), 12u);
  EXPECT_FALSE(plain.is_trimmable());
  EXPECT_EQ(plain.trim(3), 0);
  expect_error(ErrorKind::unsupported, "no keys and values", [&] {
    Sequence(1).attend(plain, 0, 1);
  });

  ArraysCache padded(1, {2, 0});
  auto mask = padded.make_mask(3);
  ASSERT_TRUE(mask);
  EXPECT_EQ(mx::sum(*mask).item<int>(), 1 + 3);
  padded.advance(2);
  EXPECT_EQ(mx::sum(*padded.make_mask(3)).item<int>(), 6);

  auto checkpoint = plain.checkpoint();
  plain.set(1, mx::ones({1, 3}));
  plain.rollback(*checkpoint);
  EXPECT_FALSE(plain[1]);
  expect_error(
      ErrorKind::argument, "at least one", [] { make_arrays_cache(0); });
}

TEST(CacheList, ActsOnAllItsCaches) {
  Sequence s(12);
  auto kv = make_kv_cache();
  auto rotating = make_rotating_cache(8);
  CacheList list({kv, rotating});
  s.attend(*list[0], 0, 6);
  s.attend(*list[1], 0, 6);
  EXPECT_EQ(list.offset(), 6);
  EXPECT_EQ(list.size(), 6);
  EXPECT_EQ(list.nbytes(), kv->nbytes() + rotating->nbytes());
  EXPECT_EQ(list.trim(2), 2);
  EXPECT_EQ(rotating->offset(), 4);
  auto checkpoint = list.checkpoint();
  s.attend(*list[0], 4, 6);
  s.attend(*list[1], 4, 6);
  EXPECT_FALSE(list.is_trimmable());
  EXPECT_EQ(list.trim(1), 0);
  EXPECT_EQ(kv->offset(), 10);
  list.rollback(*checkpoint);
  EXPECT_EQ(kv->offset(), 4);
  EXPECT_EQ(rotating->offset(), 4);
  EXPECT_TRUE(list.is_trimmable());
  expect_error(
      ErrorKind::argument, "at least one", [] { make_cache_list({}); });
}

TEST(TrimPromptCache, AllLayersOrNone) {
  Sequence s(12);
  PromptCache cache{make_kv_cache(), make_rotating_cache(8)};
  for (auto& layer : cache) {
    s.attend(*layer, 0, 6);
  }
  EXPECT_TRUE(can_trim_prompt_cache(cache));
  EXPECT_EQ(trim_prompt_cache(cache, 2), 2);
  EXPECT_EQ(cache[1]->offset(), 4);
  for (auto& layer : cache) {
    s.attend(*layer, 4, 6);
  }
  EXPECT_FALSE(can_trim_prompt_cache(cache));
  EXPECT_EQ(trim_prompt_cache(cache, 2), 0);
  EXPECT_EQ(cache[0]->offset(), 10);
  PromptCache none;
  EXPECT_EQ(trim_prompt_cache(none, 2), 0);
}

}  // namespace
}  // namespace mlxlm
