#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "cache/cache_test_support.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"

namespace mlxlm {
namespace {

CacheOrigin example() {
  return {.model_type = "llama",
          .config_hash = "c0",
          .weights_hash = "77",
          .tokenizer_hash = "70",
          .template_hash = "7e",
          .tokens = std::vector<int>{5, 0, 128000}};
}

TEST(CacheOrigin, GoesThroughMetadata) {
  Sequence s(3);
  PromptCache cache{make_kv_cache(), make_kv_cache(), make_rotating_cache(4)};
  s.attend(*cache[0], 0, 3);
  CacheMetadata metadata = metadata_of(example(), cache);
  EXPECT_EQ(metadata.at("mlxlm.layers"), "2 KVCache, 1 RotatingKVCache");
  EXPECT_EQ(metadata.at("mlxlm.dtype"), "float32");
  EXPECT_EQ(metadata.at("mlxlm.tokens"), "5,0,128000");
  EXPECT_EQ(metadata.at("mlxlm.format"), "1");
  auto origin = origin_in(metadata);
  ASSERT_TRUE(origin);
  EXPECT_EQ(origin->model_type, "llama");
  EXPECT_EQ(origin->config_hash, "c0");
  EXPECT_EQ(origin->weights_hash, "77");
  EXPECT_EQ(origin->tokenizer_hash, "70");
  EXPECT_EQ(origin->template_hash, "7e");
  EXPECT_EQ(origin->tokens, (std::vector<int>{5, 0, 128000}));
  // No ids are not the same as none known.
  EXPECT_EQ(origin_in(metadata_of({.tokens = std::vector<int>()}, {}))->tokens,
            std::vector<int>());
  EXPECT_EQ(origin_in(metadata_of({}, {}))->tokens, std::nullopt);
  EXPECT_FALSE(origin_in({{"model", "m"}}));
}

TEST(CacheOrigin, RefusesWhatItDoesntUnderstand) {
  for (const char* tokens :
       {"1,", ",1", "1,,2", "a", "1 2", "-1", "1,99999999999", "1;2"}) {
    auto metadata = metadata_of(example(), {});
    metadata["mlxlm.tokens"] = tokens;
    SCOPED_TRACE(tokens);
    expect_error(
        ErrorKind::format, "not a list of ids", [&] { origin_in(metadata); });
  }
  auto metadata = metadata_of(example(), {});
  metadata["mlxlm.format"] = "2";
  expect_error(ErrorKind::format, "saved by another version", [&] {
    origin_in(metadata);
  });
}

}  // namespace
}  // namespace mlxlm
