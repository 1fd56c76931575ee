#include <algorithm>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "cache/kv_cache.h"
#include "nn/latent_attention.h"
#include "nn/mlp.h"
#include "nn/router.h"

namespace mlxlm::nn {
namespace {

using testing::ElementsAre;
using testing::FloatNear;
using testing::Pointwise;

mx::array random(const mx::Shape& shape, int seed) {
  return mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed));
}

bool same(const mx::array& a, const mx::array& b) {
  return mx::allclose(a, b, 1e-4, 1e-5).item<bool>();
}

// A router whose logits are those of `values`, whatever the token.
Router fixed_router(std::vector<float> values, RouterSpec spec) {
  const int count = static_cast<int>(values.size());
  return {.linear = {.weight = mx::array(values.data(), {count, 1})},
          .spec = spec};
}

struct Chosen {
  std::vector<int> experts;
  std::vector<float> scores;
};

// Sorted by expert.
Chosen choose(const Router& router) {
  auto [indices, scores] = router(mx::ones({1, 1, 1}));
  auto order = mx::argsort(indices, -1);
  auto sorted = mx::astype(mx::take_along_axis(indices, order, -1), mx::int32);
  scores = mx::take_along_axis(scores, order, -1);
  mx::eval(sorted, scores);
  return {{sorted.data<int>(), sorted.data<int>() + sorted.size()},
          {scores.data<float>(), scores.data<float>() + scores.size()}};
}

TEST(Router, ABiasChangesTheChoiceButNotTheScores) {
  auto router = fixed_router({0, 2, 1, -1},
                             {.score = RouterScore::sigmoid, .num_chosen = 2});
  EXPECT_THAT(choose(router).experts, ElementsAre(1, 2));
  router.selection_bias = mx::array({0.0f, 0.0f, -1.0f, 1.0f});
  auto chosen = choose(router);
  EXPECT_THAT(chosen.experts, ElementsAre(1, 3));
  EXPECT_THAT(chosen.scores,
              Pointwise(FloatNear(1e-5), {0.880797f, 0.268941f}));
  router.spec.normalize = true;
  router.spec.scale = 2.0f;
  EXPECT_NEAR(choose(router).scores[0] + choose(router).scores[1], 2, 1e-5);
}

TEST(Router, OnlyTheBestGroupsAreChosenFrom) {
  // By its two best the first group is better, by its best the second.
  const std::vector<float> logits{1, 0.9f, 1.2f, -5};
  RouterSpec spec{.score = RouterScore::sigmoid,
                  .num_chosen = 1,
                  .num_groups = 2,
                  .num_chosen_groups = 1};
  EXPECT_THAT(choose(fixed_router(logits, spec)).experts, ElementsAre(0));
  spec.group_score = GroupScore::best;
  EXPECT_THAT(choose(fixed_router(logits, spec)).experts, ElementsAre(2));
}

TEST(Router, TheSparseMixerWeighsEachAmongThoseCloseToIt) {
  auto chosen = choose(fixed_router(
      {1, 0.99f, 0.2f},
      {.score = RouterScore::sparse_mixer, .num_chosen = 2, .jitter = 0.01f}));
  EXPECT_THAT(chosen.experts, ElementsAre(0, 1));
  // The first among the two that are close, the second alone.
  EXPECT_THAT(chosen.scores, Pointwise(FloatNear(1e-4), {0.5025f, 1.0f}));
}

TEST(Experts, ThoseThatStandForTheInputGiveItBack) {
  auto stack = [](int outputs, int inputs, int seed) {
    return kernels::Linear{.weight = random({1, outputs, inputs}, seed)};
  };
  Experts experts{.router = {.linear = {.weight = mx::zeros({2, 4})},
                             .selection_bias = mx::array({0.0f, 1.0f}),
                             .spec = {.num_chosen = 1, .scale = 3.0f}},
                  .num_experts = 1,
                  .gate = stack(8, 4, 1),
                  .up = stack(8, 4, 2),
                  .down = stack(4, 8, 3)};
  auto x = random({1, 3, 4}, 4);
  // The score of the second of two is a half.
  EXPECT_TRUE(same(experts(x, nullptr, {}), mx::multiply(x, mx::array(1.5f))));
}

LatentAttention small_latent_attention() {
  const LatentSizes sizes{
      .num_heads = 2, .rank = 16, .fixed = 8, .rotated = 4, .value = 6};
  static const Rope rope =
      make_rope({.dimensions = 4, .traditional = true}, std::nullopt);
  return {.sizes = sizes,
          .q = {.weight = random({24, 32}, 1)},
          .kv_down = {.weight = random({20, 32}, 2)},
          .latent_norm = {.weight = mx::ones({16})},
          .key_up = kernels::Linear{.weight = random({2, 16, 8}, 3)},
          .value_up = kernels::Linear{.weight = random({2, 6, 16}, 4)},
          .o = {.weight = random({32, 12}, 5)},
          .rope = &rope,
          .spec = {.scale = 0.3f}};
}

TEST(LatentAttention, BothFormsAndEveryWayOfReadingAgree) {
  auto absorbed = small_latent_attention();
  auto x = random({1, 40, 32}, 6);
  auto whole = absorbed.attend(x, nullptr, nullptr);  // goes up: many queries

  auto plain = absorbed;
  plain.kv_up = kernels::Linear{
      .weight = mx::reshape(
          mx::concatenate({mx::swapaxes(absorbed.key_up->weight, -1, -2),
                           absorbed.value_up->weight},
                          1),
          {28, 16})};
  EXPECT_TRUE(same(plain.attend(x, nullptr, nullptr), whole));

  auto cache = make_kv_cache();
  std::vector<mx::array> parts;
  for (int begin = 0; begin < 40;) {
    const int end = begin == 0 ? 37 : begin + 1;
    auto part = mx::slice(x, {0, begin, 0}, {1, end, 32});
    parts.push_back(absorbed.attend(part, nullptr, cache.get()));
    begin = end;
  }
  EXPECT_TRUE(same(mx::concatenate(parts, 2), whole));
}

TEST(LatentAttention, WorksOnQuantizedLatents) {
  auto attention = small_latent_attention();
  attention.sizes.rank = attention.sizes.rotated = 32;
  static const Rope rope = make_rope({.dimensions = 32}, std::nullopt);
  attention.rope = &rope;
  attention.spec.scale = 0.01f;
  attention.q.weight = random({80, 32}, 1);
  attention.kv_down.weight = random({64, 32}, 2);
  attention.latent_norm.weight = mx::ones({32});
  attention.key_up->weight = random({2, 32, 8}, 3);
  attention.value_up->weight = random({2, 6, 32}, 4);
  auto x = random({1, 9, 32}, 5);
  auto exact = attention.attend(x, nullptr, nullptr);
  auto cache = make_quantized_cache({8, 8, 32});
  auto rough = attention.attend(x, nullptr, cache.get());
  EXPECT_EQ(cache->offset(), 9);
  EXPECT_TRUE(mx::allclose(rough, exact, 0.05, 0.15).item<bool>());
}

}  // namespace
}  // namespace mlxlm::nn
