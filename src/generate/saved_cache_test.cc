#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "generate/prefill.h"
#include "generate/toy.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

const std::vector<int> kTokens = {1, 2, 3, 4, 5};

// What the log says while it lives.
class Log {
 public:
  Log() {
    set_log_handler([this](LogLevel, std::string_view line) { text += line; });
  }
  ~Log() { set_log_handler({}); }
  std::string text;
};

struct Saved {
  PromptCache cache;
  CacheMetadata metadata;
};

Saved saved_by(Model& model, const Tokenizer* tokenizer, int max_kv_size = 0) {
  Saved saved{model.make_cache(max_kv_size), {}};
  model.forward(token_row(kTokens), saved.cache, std::nullopt);
  saved.metadata =
      metadata_of(cache_origin(model, tokenizer, kTokens), saved.cache);
  return saved;
}

void check(Saved saved, Model& model, const Tokenizer* tokenizer) {
  check_saved_cache("c.st", saved.cache, saved.metadata, model, tokenizer);
}

void expect_refused(const std::string& part, const Saved& saved, Model& model) {
  ToyTokenizer tokenizer;
  expect_error(
      ErrorKind::argument, part, [&] { check(saved, model, &tokenizer); });
}

TEST(SavedCache, OfTheSameModelIsAccepted) {
  ToyTokenizer tokenizer;
  for (int window : {0, 8}) {
    ToyModel model(ToyOptions{.window_tokens = window});
    for (int max_kv_size : {0, 16}) {
      Log log;
      Saved saved = saved_by(model, &tokenizer, max_kv_size);
      check(saved, model, &tokenizer);
      check(saved, model, nullptr);  // nothing to compare with
      quantize_prompt_cache(saved.cache, 0, {8, 4, 32});
      check(saved, model, &tokenizer);
      saved.cache = model.make_cache(0);  // nothing read yet
      check(saved, model, &tokenizer);
      EXPECT_EQ(log.text, "");
    }
  }
}

TEST(SavedCache, NamesTheFirstDifference) {
  ToyTokenizer tokenizer;
  ToyModel model;
  Saved saved = saved_by(model, &tokenizer);
  ToyModel three(ToyOptions{.num_layers = 3});
  expect_refused(
      "c.st was saved with 2 layers (2 KVCache) for toy, this model (toy) has "
      "3 (3 KVCache)",
      saved,
      three);
  ToyModel windowed(ToyOptions{.window_tokens = 8});
  ToyModel wider(ToyOptions{.window_tokens = 16});
  Saved rotating = saved_by(windowed, &tokenizer);
  expect_refused("layer 0 is of kind KVCache, this model has RotatingKVCache",
                 saved,
                 windowed);
  expect_refused(
      "layer 0 holds 8 tokens at most, this model has 16", rotating, wider);
  ToyModel other(ToyOptions{.seed = 5});
  expect_refused("by a model with other weights", saved, other);

  auto change = [&](const std::string& key) {
    Saved changed = saved;
    changed.metadata[key] = "another";
    return changed;
  };
  expect_refused(
      "for another, this model is toy", change("mlxlm.model_type"), model);
  expect_refused("another config.json", change("mlxlm.config"), model);
  expect_refused("another tokenizer", change("mlxlm.tokenizer"), model);
  Log log;
  check(change("mlxlm.template"), model, &tokenizer);
  EXPECT_NE(log.text.find("another chat template"), std::string::npos);
}

TEST(SavedCache, SizesAreThoseOfTheModel) {
  ToyModel model;
  auto with = [&](const mx::Shape& shape) {
    PromptCache cache = model.make_cache(0);
    auto rows = mx::ones(shape);
    cache[1]->attend(rows, rows, rows, {});
    return Saved{cache, {}};
  };
  expect_refused(
      "layer 1 holds 1 rows of 4 heads of 32 numbers, this model has "
      "1 rows of 2 heads of 32 numbers",
      with({1, 4, 3, 32}),
      model);
  expect_refused("2 heads of 64 numbers", with({1, 2, 3, 64}), model);
  expect_refused("2 rows of 2 heads", with({2, 2, 3, 32}), model);
  PromptCache recurrent{make_arrays_cache(1), make_arrays_cache(1)};
  expect_refused("layer 0 is of kind ArraysCache", {recurrent, {}}, model);
}

TEST(SavedCache, HalfPrecisionIsWidened) {
  ToyModel model;
  PromptCache cache = model.make_cache(0);
  auto rows = mx::astype(mx::random::normal({1, 2, 3, 32}), mx::bfloat16);
  for (auto& layer : cache) {
    layer->attend(rows, rows, rows, {});
  }
  cache[1] = cache[1]->to_quantized({8, 8, 32});
  check_saved_cache("c.st", cache, {}, model, nullptr);
  std::vector<mx::array> arrays;
  for (auto& layer : cache) {
    EXPECT_EQ(layer->offset(), 3);
    layer->append_arrays_to(arrays);
  }
  ASSERT_EQ(arrays.size(), 8u);
  for (const auto& array : arrays) {
    EXPECT_TRUE(array.dtype() == mx::float32 || array.dtype() == mx::uint32);
  }
}

TEST(SavedCache, HalvesStayWhereTheModelKeepsThem) {
  class Keeping : public ToyModel {
   public:
    PromptCache make_cache(int max_kv_size = 0) const override {
      auto cache = ToyModel::make_cache(max_kv_size);
      for (auto& layer : cache) {
        dynamic_cast<AttentionCache&>(*layer).keep_halves();
      }
      return cache;
    }
  } model;
  PromptCache cache = model.make_cache();
  auto rows = mx::random::normal({1, 2, 3, 32});
  cache[0]->attend(rows, rows, rows, {});
  rows = mx::astype(rows, mx::bfloat16);
  cache[1]->attend(rows, rows, rows, {});
  check_saved_cache("c.st", cache, {}, model, nullptr);
  std::vector<mx::array> arrays;
  for (auto& layer : cache) layer->append_arrays_to(arrays);
  ASSERT_EQ(arrays.size(), 4u);
  EXPECT_EQ(arrays[0].dtype(), mx::float16);
  EXPECT_EQ(arrays[3].dtype(), mx::float32);
}

TEST(SavedCache, WithoutAnOriginTheLogSaysSo) {
  ToyModel model;
  Saved saved = saved_by(model, nullptr);
  saved.metadata = {{"model", "m"}};
  Log log;
  check(saved, model, nullptr);
  EXPECT_NE(log.text.find("can't be verified"), std::string::npos);
}

}  // namespace
}  // namespace mlxlm
