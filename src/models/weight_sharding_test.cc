// The parts of a layer that the ranks have, in one process: their answers add
// up to the layer's.
#include "models/weight_sharding.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "nn/linear.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

mx::array random(const mx::Shape& shape, int seed) {
  return mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed));
}

kernels::Linear dense(int rows, int columns, int seed, bool bias = false) {
  kernels::Linear linear{.weight = random({rows, columns}, seed)};
  if (bias) linear.bias = random({rows}, seed + 100);
  return linear;
}

kernels::Linear quantized(int rows, int columns, int seed, int group_size) {
  auto parts = mx::quantize(random({rows, columns}, seed), group_size, 4);
  return {.weight = parts[0],
          .scales = parts[1],
          .zeros = parts[2],
          .group_size = group_size,
          .bits = 4};
}

void expect_close(const mx::array& a, const mx::array& b) {
  ASSERT_EQ(a.shape(), b.shape());
  EXPECT_TRUE(mx::allclose(a, b, 1e-4, 1e-4).item<bool>());
}

// The sum of what each part of the layer makes.
template <class Make>
void expect_parts_add_up(const Layer& layer, int count, const Make& make) {
  auto sum = mx::array(0.0f);
  for (int i = 0; i < count; ++i) {
    auto part = layer;
    WeightSharding shard({i, count});
    shard(part);
    sum = mx::add(sum, make(part));
  }
  expect_close(sum, make(layer));
}

mx::array attention_of(const Layer& layer) {
  const auto& attention = std::get<nn::Attention>(layer.mixer);
  const auto heads = attention.attend(random({1, 5, 24}, 1), nullptr, nullptr);
  return nn::apply(nn::in_token_order(heads), attention.o);
}

Layer attention_layer() {
  Layer layer;
  layer.mixer = nn::Attention{.q = dense(32, 24, 2, true),
                              .k = dense(16, 24, 3, true),
                              .v = dense(16, 24, 4, true),
                              .o = dense(24, 32, 5, true),
                              .num_heads = 4,
                              .num_kv_heads = 2,
                              .spec = {.scale = 0.5f}};
  return layer;
}

TEST(WeightSharding, HeadsAddUp) {
  expect_parts_add_up(attention_layer(), 2, attention_of);
}

TEST(WeightSharding, WhatHeadsHaveGoesWithThem) {
  auto layer = attention_layer();
  auto& attention = std::get<nn::Attention>(layer.mixer);
  attention.q_norm = {.weight = random({4, 8}, 6)};
  attention.k_norm = {.weight = random({2, 8}, 7)};
  attention.gate = dense(4, 24, 8);
  attention.spec.sinks = random({4}, 9);
  attention.query_gain = random({4, 1, 1}, 10);
  expect_parts_add_up(layer, 2, attention_of);
}

TEST(WeightSharding, ANormOverAllHeadsStaysWhole) {
  auto layer = attention_layer();
  std::get<nn::Attention>(layer.mixer).q_norm = {.weight = random({32}, 6)};
  WeightSharding shard({1, 2});
  shard(layer);
  EXPECT_FALSE(std::get<nn::Attention>(layer.mixer).partial);
  EXPECT_EQ(std::get<nn::Attention>(layer.mixer).num_heads, 4);
}

mx::array mlp_of(const Layer& layer) {
  return std::get<nn::Mlp>(layer.mlp)(random({1, 3, 64}, 1), nullptr, {});
}

TEST(WeightSharding, HiddenNumbersAddUp) {
  Layer layer;
  layer.mlp = nn::Mlp{.gate = dense(96, 64, 2, true),
                      .up = dense(96, 64, 3, true),
                      .down = dense(64, 96, 4, true)};
  expect_parts_add_up(layer, 3, mlp_of);
}

TEST(WeightSharding, QuantizedGroupsAddUp) {
  Layer layer;
  layer.mlp = nn::Mlp{.gate = quantized(128, 64, 2, 32),
                      .up = quantized(128, 64, 3, 32),
                      .down = quantized(64, 128, 4, 32)};
  expect_parts_add_up(layer, 4, mlp_of);
}

TEST(WeightSharding, LowRankAdditionsAddUp) {
  auto with = [](kernels::Linear linear, int rows, int columns, int seed) {
    linear.low_rank = std::make_shared<const kernels::LowRank>(
        kernels::LowRank{.a = random({columns, 4}, seed),
                         .b = random({4, rows}, seed + 1),
                         .scale = 2.0f,
                         .row_scale = random({rows}, seed + 2)});
    return linear;
  };
  Layer layer;
  layer.mlp = nn::Mlp{.gate = with(dense(96, 64, 2), 96, 64, 20),
                      .up = dense(96, 64, 3),
                      .down = with(dense(64, 96, 4), 64, 96, 30)};
  expect_parts_add_up(layer, 2, mlp_of);
}

TEST(WeightSharding, ExpertsAddUp) {
  auto stack = [](int rows, int columns, int seed) {
    return kernels::Linear{.weight = random({4, rows, columns}, seed),
                           .bias = random({4, rows}, seed + 100)};
  };
  Layer layer;
  layer.mlp = nn::Experts{
      .router = {.linear = dense(4, 64, 2), .spec = {.num_chosen = 2}},
      .num_experts = 4,
      .gate = stack(32, 64, 3),
      .up = stack(32, 64, 4),
      .down = stack(64, 32, 5),
      .shared = nn::Mlp{.gate = dense(16, 64, 6),
                        .up = dense(16, 64, 7),
                        .down = dense(64, 16, 8)},
      .shared_kind = nn::SharedGate::sigmoid,
      .shared_gate = dense(1, 64, 9)};
  expect_parts_add_up(layer, 2, [](const Layer& part) {
    return std::get<nn::Experts>(part.mlp)(random({1, 6, 64}, 1), nullptr, {});
  });
}

TEST(WeightSharding, SizesThatCantBeSplitAreNamed) {
  auto layer = attention_layer();
  WeightSharding four({0, 4});
  expect_error(ErrorKind::unsupported, "2 key heads", [&] { four(layer); });
  layer.mixer = std::monostate();
  layer.mlp =
      nn::Mlp{.up = quantized(96, 64, 3, 32), .down = quantized(64, 96, 4, 32)};
  WeightSharding two({0, 2});
  expect_error(
      ErrorKind::unsupported, "96 hidden numbers", [&] { two(layer); });
  expect_error(ErrorKind::unsupported, "groups of 32", [&] { two(layer); });
}

TEST(WeightSharding, ParametersBecomeParts) {
  Layer layer;
  const auto both = dense(192, 64, 2);
  const int sizes[] = {96, 96};
  auto halves = nn::split_rows(both, sizes);
  layer.mlp =
      nn::Mlp{.gate = halves[0], .up = halves[1], .down = dense(64, 96, 4)};
  auto& mlp = std::get<nn::Mlp>(layer.mlp);
  std::vector<Parameter> parameters{{"both", both.weight},
                                    {"down", mlp.down.weight}};
  std::vector<SplitTensor> splits{
      {.whole = both.weight.id(), .parts = {mlp.gate->weight, mlp.up.weight}}};
  WeightSharding shard({1, 2});
  shard(layer);
  const auto joined = shard.replace(parameters, splits);
  EXPECT_TRUE(joined.contains(parameters[0].value.id()));
  expect_close(parameters[0].value,
               mx::concatenate({mlp.gate->weight, mlp.up.weight}, 0));
  expect_close(mlp.up.weight, mx::slice(both.weight, {144, 0}, {192, 64}));
  EXPECT_EQ(parameters[1].value.id(), mlp.down.weight.id());
  EXPECT_EQ(splits[0].parts[1].id(), mlp.up.weight.id());
}

TEST(WeightSharding, TheVocabularyIsSplitIfItCanBe) {
  auto head = dense(10, 8, 1);
  WeightSharding three({0, 3});
  EXPECT_FALSE(three.split_head(head));
  WeightSharding two({1, 2});
  EXPECT_TRUE(two.split_head(head));
  EXPECT_EQ(head.weight.shape(), (mx::Shape{5, 8}));
}

}  // namespace
}  // namespace mlxlm
