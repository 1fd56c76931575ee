#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "nn/activations.h"
#include "nn/linear.h"
#include "nn/rope.h"

namespace mlxlm::nn {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::FloatNear;

mx::array random(const mx::Shape& shape, int seed) {
  return mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed));
}

bool same(const mx::array& a, const mx::array& b) {
  return mx::allclose(a, b, 1e-5, 1e-5).item<bool>();
}

kernels::Linear quantized(const mx::array& weight, int bits) {
  auto parts = mx::quantize(weight, 32, bits);
  return {.weight = parts[0],
          .scales = parts[1],
          .zeros = parts[2],
          .group_size = 32,
          .bits = bits};
}

mx::array project(const mx::array& x, const kernels::Linear& linear) {
  return kernels::table().head(x, nullptr, linear);
}

TEST(Linear, SplitRowsGiveThePartsOfTheWhole) {
  auto x = random({1, 2, 64}, 1);
  for (bool is_quantized : {false, true}) {
    auto weight = random({10, 64}, 2);
    auto whole =
        is_quantized ? quantized(weight, 4) : kernels::Linear{.weight = weight};
    whole.bias = random({10}, 3);
    whole.low_rank = std::make_shared<kernels::LowRank>(kernels::LowRank{
        random({64, 2}, 4), random({2, 10}, 5), 0.5f, random({10}, 6)});
    const int sizes[] = {6, 1, 3};
    auto parts = split_rows(whole, sizes);
    std::vector<mx::array> outputs;
    for (const auto& part : parts) outputs.push_back(project(x, part));
    EXPECT_EQ(outputs[2].shape(-1), 3);
    EXPECT_TRUE(same(mx::concatenate(outputs, -1), project(x, whole)));
  }
}

TEST(Linear, EmbeddingsAreRowsWhateverTheFormat) {
  auto tokens = mx::array({4, 0, 4}, {1, 3});
  auto table = random({5, 64}, 1);
  EXPECT_TRUE(same(embed({.weight = table}, tokens, mx::float32),
                   mx::take(table, tokens, 0)));
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    auto packed = quantized(table, bits);
    EXPECT_TRUE(same(embed(packed, tokens, mx::float32),
                     mx::take(kernels::dequantized_weight(packed), tokens, 0)));
  }
  kernels::Linear adapted{.weight = table};
  adapted.low_rank = std::make_shared<kernels::LowRank>(kernels::LowRank{
      random({64, 2}, 4), random({2, 5}, 5), 0.5f, random({5}, 6)});
  // x times the adapted table is what the head computes with the identity.
  auto rows = mx::transpose(project(mx::eye(64), adapted));
  EXPECT_TRUE(
      same(embed(adapted, tokens, mx::float32), mx::take(rows, tokens, 0)));
}

std::vector<float> freqs(const json& scaling, RopeOptions options) {
  auto rope = make_rope(options, ConfigReader(scaling)).at(1, 0);
  auto values = *rope.freqs;
  mx::eval(values);
  return {values.data<float>(), values.data<float>() + values.size()};
}

TEST(Rope, ProportionalLeavesTheRestInPlace) {
  EXPECT_THAT(
      freqs({{"type", "proportional"},
             {"partial_rotary_factor", 0.5},
             {"factor", 2.0}},
            {.dimensions = 8, .base = 16}),
      ElementsAre(FloatNear(2, 1e-5), FloatNear(4, 1e-5), INFINITY, INFINITY));
}

TEST(Rope, LongFactorsStretchAndScale) {
  json scaling{{"rope_type", "longrope"},
               {"original_max_position_embeddings", 64},
               {"short_factor", {1, 1}},
               {"long_factor", {2, 3}}};
  RopeOptions options{.dimensions = 4, .base = 100, .max_positions = 4096};
  EXPECT_THAT(freqs(scaling, options),
              ElementsAre(FloatNear(2, 1e-5), FloatNear(30, 1e-4)));
  auto rope = make_rope(options, ConfigReader(scaling)).at(1, 0);
  EXPECT_NEAR(
      rope.input_scale, std::sqrt(1 + std::log(64) / std::log(64)), 1e-6);
}

TEST(Rope, DynamicBaseGrowsBeyondTheTrainedLength) {
  json scaling{{"type", "dynamic"}, {"factor", 2.0}};
  auto rope = make_rope({.dimensions = 4, .base = 100, .max_positions = 10},
                        ConfigReader(scaling));
  EXPECT_FLOAT_EQ(rope.at(3, 2).base, 100);
  EXPECT_FLOAT_EQ(rope.at(10, 0).base, 100);
  EXPECT_FLOAT_EQ(rope.at(5, 15).base, 100 * std::pow(3.0, 2.0));
}

TEST(Rope, FaultsAreErrors) {
  const std::vector<json> bad{
      {{"type", "spiral"}},
      {{"type", "linear"}},
      {{"type", "linear"}, {"factor", 0}},
      {{"type", "dynamic"}, {"factor", 2}},
      {{"type", "llama3"}, {"factor", 0}},
      {{"type", "yarn"}, {"factor", 2}, {"beta_fast", -1}},
      {{"type", "longrope"}, {"original_max_position_embeddings", 64}},
      {{"type", "longrope"},
       {"original_max_position_embeddings", 64},
       {"long_factor", {1, 2, 3}}},
      {{"type", "proportional"}, {"partial_rotary_factor", 1.5}},
      {{"type", "mrope"}, {"mrope_section", {1, 2}}},
  };
  for (const auto& scaling : bad) {
    EXPECT_THROW(make_rope({.dimensions = 8}, ConfigReader(scaling)), Error)
        << scaling;
  }
}

TEST(Linear, RowGroupsAreGathered) {
  auto weight = random({2 * (3 + 1), 64}, 1);  // two groups of 3 rows and 1
  const int counts[] = {3, 1};
  for (const auto& whole :
       {kernels::Linear{.weight = weight, .bias = random({8}, 2)},
        quantized(weight, 4)}) {
    auto parts = split_row_groups(whole, 2, counts);
    auto x = random({1, 5, 64}, 3);
    auto all = mx::reshape(apply(x, whole), {1, 5, 2, 4});
    auto first = mx::slice(all, {0, 0, 0, 0}, {1, 5, 2, 3});
    auto second = mx::slice(all, {0, 0, 0, 3}, {1, 5, 2, 4});
    EXPECT_TRUE(same(apply(x, parts[0]), mx::reshape(first, {1, 5, 6})));
    EXPECT_TRUE(same(apply(x, parts[1]), mx::reshape(second, {1, 5, 2})));
  }
}

TEST(Linear, TimesAFactorInEveryFormat) {
  auto weight = random({8, 64}, 1);
  const mx::array factor({-1.5f});
  auto mxfp4 = mx::quantize(weight, 32, 4, "mxfp4");
  for (const auto& linear : {kernels::Linear{.weight = weight},
                             quantized(weight, 4),
                             kernels::Linear{.weight = mxfp4[0],
                             .scales = mxfp4[1],
                             .group_size = 32,
                             .bits = 4,
                             .mode = "mxfp4"}}) {
    EXPECT_TRUE(
        same(kernels::dequantized_weight(times(linear, factor)),
             mx::multiply(kernels::dequantized_weight(linear), factor)));
  }
}

TEST(Rope, ReversedTurnsBack) {
  auto x = random({1, 4, 2 * 16}, 1);
  auto turned = [](const mx::array& y, const Rope& rope) {
    auto now = rope.at(4, 3);
    auto heads = kernels::table().norm_rope(y, 2, nullptr, &now, 3);
    return mx::reshape(mx::swapaxes(heads, 1, 2), y.shape());
  };
  const auto rope = make_rope({.dimensions = 16, .base = 500}, {});
  auto forth = turned(x, rope);
  EXPECT_FALSE(same(forth, x));
  EXPECT_TRUE(same(turned(forth, rope.reversed()), x));
}

TEST(Activations, XieluIsItsFormula) {
  auto f = xielu(
      mx::array(0.3f), mx::array(-0.2f), mx::array(0.5f), mx::array(-1e-6f));
  auto y = f(mx::array({2.0f, -1.0f, 0.0f}));
  const float a = std::log1p(std::exp(0.3f));
  const float b = 0.5f + std::log1p(std::exp(-0.2f));
  EXPECT_NEAR(mx::slice(y, {0}, {1}).item<float>(), a * 4 + 1, 1e-5);
  EXPECT_NEAR(mx::slice(y, {1}, {2}).item<float>(),
              (std::expm1(-1.0f) + 1) * b - 0.5f,
              1e-5);
  EXPECT_NEAR(mx::slice(y, {2}, {3}).item<float>(), 0, 1e-5);
}

TEST(Activations, SparseGeluKeepsTheLargest) {
  auto x = random({1, 4000}, 5);
  auto kept = mx::sum(mx::greater(sparse_gelu(0.9)(x), mx::array(0.0f)));
  EXPECT_NEAR(kept.item<std::int32_t>(), 400, 60);
}

}  // namespace
}  // namespace mlxlm::nn
