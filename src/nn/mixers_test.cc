// Mixers: in chunks as in one pass, there and back again, and caches that don't
// fit.
#include <algorithm>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/arrays_cache.h"
#include "cache/batch_cache.h"
#include "cache/cache_list.h"
#include "cache/kv_cache.h"
#include "kernels/test_layers.h"
#include "nn/conv_attention.h"
#include "nn/delta_net.h"
#include "nn/lightning_attention.h"
#include "nn/mamba.h"
#include "nn/mamba2.h"
#include "nn/rg_lru.h"
#include "nn/rwkv7.h"
#include "nn/short_conv.h"
#include "nn/side_by_side.h"

namespace mlxlm::nn {
namespace {

using kernels::test_layers::random;
using MixerPtr = std::shared_ptr<Mixer>;

constexpr int kWidth = 12;
constexpr int kTokens = 13;
constexpr int kRows = 2;

kernels::Linear dense(int outputs, int inputs = kWidth, bool bias = false) {
  return kernels::test_layers::dense(outputs, inputs, mx::float32, bias);
}

kernels::CausalConv conv(int channels, int taps, bool silu = true) {
  return {random({channels, taps}), random({channels}), silu};
}

kernels::Norm norm(int size) { return {.weight = random({size})}; }

mx::array positive(const mx::Shape& shape) { return mx::exp(random(shape)); }

const Rope& turn() {
  static const Rope rope(kernels::Rope{.dimensions = 4});
  return rope;
}

MixerPtr short_conv() {
  return std::make_shared<ShortConv>(
      dense(3 * kWidth), conv(kWidth, 3, false), dense(kWidth));
}

// One convolution for queries, keys and values, a decay per head.
MixerPtr delta_net() {
  return std::make_shared<DeltaNet>(
      DeltaNetParts{.num_heads = 4,
                    .num_key_heads = 2,
                    .key_size = 5,
                    .value_size = 3,
                    .qkv = {dense(10), dense(10), dense(12)},
                    .convs = {conv(32, 4)},
                    .decay = {dense(4)},
                    .gate = {dense(12)},
                    .beta = dense(4),
                    .rate = positive({4}),
                    .step_bias = random({4}),
                    .norm = norm(3),
                    .out = dense(kWidth, 12)});
}

// Three convolutions, a decay per key, low ranks.
MixerPtr kimi_delta_net() {
  return std::make_shared<DeltaNet>(
      DeltaNetParts{.num_heads = 2,
                    .num_key_heads = 2,
                    .key_size = 5,
                    .value_size = 5,
                    .qkv = {dense(10), dense(10), dense(10)},
                    .convs = {conv(10, 2), conv(10, 2), conv(10, 2)},
                    .decay = {dense(3), dense(10, 3)},
                    .gate = {dense(3), dense(10, 3)},
                    .beta = dense(2),
                    .beta_scale = 2.0f,
                    .rate = positive({2, 1}),
                    .step_bias = random({2, 5}),
                    .lower_bound = -5.0f,
                    .norm = norm(5),
                    .sigmoid_gate = true,
                    .out = dense(kWidth, 10)});
}

MixerPtr mamba() {
  return std::make_shared<Mamba>(
      MambaParts{.inner_size = 10,
                 .state_size = 3,
                 .step_rank = 2,
                 .in = dense(20),
                 .conv = conv(10, 4),
                 .x = dense(8, 10),
                 .step = dense(10, 2, true),
                 .step_norm = norm(2),
                 .b_norm = kernels::Norm{},
                 .a = mx::negative(positive({10, 3})),
                 .skip = random({10}),
                 .out = dense(kWidth, 10)});
}

MixerPtr mamba2() {
  return std::make_shared<Mamba2>(Mamba2Parts{.num_heads = 4,
                                              .head_size = 3,
                                              .num_groups = 2,
                                              .state_size = 5,
                                              .in = dense(12 + 32 + 4),
                                              .conv = conv(32, 4),
                                              .rate = positive({4}),
                                              .step_bias = random({4}),
                                              .skip = random({4}),
                                              .min_step = 0.01f,
                                              .max_step = 2.0f,
                                              .norm = norm(12),
                                              .norm_groups = 2,
                                              .out = dense(kWidth, 12)});
}

MixerPtr plamo_mamba2() {
  return std::make_shared<Mamba2>(
      Mamba2Parts{.num_heads = 4,
                  .head_size = 3,
                  .state_size = 5,
                  .in = dense(12),
                  .select = Mamba2Select{.x = dense(12),
                                         .bc_step = dense(13, 12),
                                         .b_norm = norm(5),
                                         .c_norm = norm(5),
                                         .step_norm = norm(3),
                                         .step = dense(4, 3)},
                  .conv = conv(12, 4),
                  .rate = positive({4}),
                  .step_bias = random({4}),
                  .skip = random({4}),
                  .max_step = 100.0f,
                  .out = dense(kWidth, 12)});
}

MixerPtr rg_lru() {
  return std::make_shared<RgLru>(
      RgLruParts{.y = dense(kWidth, kWidth, true),
                 .x = dense(kWidth, kWidth, true),
                 .out = dense(kWidth, kWidth, true),
                 .conv = conv(kWidth, 4, false),
                 .input_gate = random({3, 4, 4}),
                 .input_gate_bias = random({3, 4}),
                 .recurrent_gate = random({3, 4, 4}),
                 .recurrent_gate_bias = random({3, 4}),
                 .rate = mx::negative(positive({kWidth}))});
}

// Of a layer after the first.
MixerPtr rwkv7() {
  auto low_rank = [] { return LowRankMlp{dense(3), dense(kWidth, 3)}; };
  auto share = [] { return random({kWidth}); };
  auto per_head = [] { return random({3, 4}); };
  return std::make_shared<Rwkv7>(Rwkv7Parts{.num_heads = 3,
                                            .head_size = 4,
                                            .time_norm = norm(kWidth),
                                            .channel_norm = norm(kWidth),
                                            .mix_r = share(),
                                            .mix_w = share(),
                                            .mix_k = share(),
                                            .mix_v = share(),
                                            .mix_a = share(),
                                            .mix_g = share(),
                                            .mix_channel = share(),
                                            .removal_scale = per_head(),
                                            .k_scale = per_head(),
                                            .bonus = per_head(),
                                            .r = dense(kWidth),
                                            .k = dense(kWidth),
                                            .v = dense(kWidth),
                                            .out = dense(kWidth),
                                            .decay = low_rank(),
                                            .rate = low_rank(),
                                            .gate = low_rank(),
                                            .value = low_rank(),
                                            .head_norm_weight = per_head(),
                                            .head_norm_bias = per_head(),
                                            .key = dense(20),
                                            .channel_out = dense(kWidth, 20)});
}

MixerPtr lightning_attention() {
  return std::make_shared<LightningAttention>(
      LightningParts{.num_heads = 3,
                     .head_size = 4,
                     .q = dense(12),
                     .k = dense(12),
                     .v = dense(12),
                     .q_norm = norm(4),
                     .k_norm = norm(4),
                     .rope = &turn(),
                     .scale = 0.5f,
                     .decay = lightning_decay(3, 1, 4),
                     .gate = dense(12),
                     .norm_weight = random({12}),
                     .norm_groups = 3,
                     .out = dense(kWidth, 12)});
}

MixerPtr conv_attention(int window_tokens) {
  return std::make_shared<ConvAttention>(ConvAttentionParts{
      .num_heads = 4,
      .num_kv_heads = 2,
      .q = dense(16),
      .k = dense(8),
      .v = dense(8),
      .out = dense(kWidth, 16),
      .k_conv = {random({8, 2})},
      .v_conv = {random({8, 2})},
      .rope = &turn(),
      .spec = {.scale = 0.5f, .window_tokens = window_tokens}});
}

MixerPtr side_by_side() {
  Attention attention{.q = dense(8),
                      .k = dense(8),
                      .v = dense(8),
                      .o = dense(kWidth, 8),
                      .rope = &turn(),
                      .num_heads = 2,
                      .num_kv_heads = 2,
                      .spec = {.scale = 0.5f}};
  std::vector<MixerPtr> mixers;
  mixers.push_back(mamba2());
  mixers.push_back(std::make_shared<AttentionMixer>(std::move(attention)));
  return std::make_shared<SideBySide>(std::move(mixers));
}

struct Case {
  std::string name;
  std::function<MixerPtr()> make;
};

void PrintTo(const Case& each, std::ostream* out) { *out << each.name; }

// x [B, T, ...]: [:, begin:end].
mx::array tokens(const mx::array& x, int begin, int end) {
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start[1] = begin;
  stop[1] = end;
  return mx::slice(x, start, stop);
}

float difference(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(mx::subtract(a, b))).item<float>();
}

class Mixers : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    mx::random::seed(5);
    mixer_ = GetParam().make();
    x_ = random({kRows, kTokens, kWidth});
    first_values_ = random({kRows, kTokens, 3, 4});
    norm_ = norm(kWidth);
  }

  // Tokens [begin, end) of x.
  mx::array read(Cache* cache, int begin, int end) {
    const auto x = tokens(x_, begin, end);
    std::optional<mx::array> shared = tokens(first_values_, begin, end);
    const kernels::TokenRun run{end - begin, begin};
    auto y = (*mixer_)({x, &norm_, cache, {&run, 1}, &shared}, {.stream = &x});
    mx::eval(y);  // a window is overwritten by the tokens that come next
    return y;
  }

  MixerPtr mixer_;
  mx::array x_ = mx::array(0.0f);
  mx::array first_values_ = mx::array(0.0f);
  kernels::Norm norm_;
};

TEST_P(Mixers, ChunksAreAsOnePass) {
  const auto whole = read(nullptr, 0, kTokens);
  ASSERT_EQ(whole.shape(), x_.shape());
  EXPECT_GT(difference(whole, x_), 0.01f);
  for (int chunk : {1, 5, kTokens}) {
    auto cache = mixer_->make_cache();
    std::vector<mx::array> parts;
    for (int begin = 0; begin < kTokens; begin += chunk) {
      parts.push_back(
          read(cache.get(), begin, std::min(begin + chunk, kTokens)));
    }
    EXPECT_LT(difference(mx::concatenate(parts, 1), whole), 1e-4f)
        << "chunks of " << chunk;
  }
}

TEST_P(Mixers, RowsAreAsAlone) {
  const auto both = read(nullptr, 0, kTokens);
  auto row = [](const mx::array& x) {
    auto stop = x.shape();
    stop[0] = 1;
    return mx::slice(x, mx::Shape(x.ndim(), 0), stop);
  };
  x_ = row(x_);
  first_values_ = row(first_values_);
  EXPECT_LT(difference(read(nullptr, 0, kTokens), row(both)), 1e-4f);
}

// Three rows, which have read 0, 4 and 6 tokens, side by side.
TEST_P(Mixers, RowsOfABatchAreAsAlone) {
  x_ = random({1, kTokens, kWidth});
  first_values_ = random({1, kTokens, 3, 4});
  const std::vector<kernels::TokenRun> runs{{3, 0}, {1, 4}, {2, 6}};
  std::vector<CachePtr> caches;
  std::vector<mx::array> alone, xs, values;
  std::vector<int> counts;
  for (const auto& [count, offset] : runs) {
    caches.push_back(mixer_->make_cache());
    if (offset > 0) read(caches.back().get(), 0, offset);
    const int end = offset + count;
    alone.push_back(read(caches.back()->fork().get(), offset, end));
    xs.push_back(tokens(x_, offset, end));
    values.push_back(tokens(first_values_, offset, end));
    counts.push_back(count);
  }
  BatchCache batch(caches, counts);
  const auto x = mx::concatenate(xs, 1);
  std::optional<mx::array> shared = mx::concatenate(values, 1);
  auto y = (*mixer_)({x, &norm_, &batch, runs, &shared}, {.stream = &x});
  EXPECT_LT(difference(y, mx::concatenate(alone, 1)), 1e-4f);
  // What each has read goes on from there.
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const int end = runs[i].offset + runs[i].num_tokens;
    auto cold = mixer_->make_cache();
    read(cold.get(), 0, end);
    EXPECT_LT(difference(read(caches[i].get(), end, end + 2),
                         read(cold.get(), end, end + 2)),
              1e-4f);
  }
}

TEST_P(Mixers, WhatIsTakenBackLeavesNoTrace) {
  auto cache = mixer_->make_cache();
  read(cache.get(), 0, 6);
  const auto checkpoint = cache->checkpoint();
  const auto copy = cache->fork();
  const auto expected = read(cache.get(), 6, 9);
  cache->rollback(*checkpoint);
  EXPECT_EQ(difference(read(cache.get(), 6, 9), expected), 0);
  EXPECT_EQ(difference(read(copy.get(), 6, 9), expected), 0);
}

TEST_P(Mixers, OtherCachesAreRefused) {
  const auto kv_cache = make_kv_cache();
  const auto short_list = make_cache_list({make_arrays_cache(2)});
  for (Cache* cache : {kv_cache.get(), short_list.get()}) {
    EXPECT_THROW(read(cache, 0, 2), Error);
  }
  // Of other sizes, as of another model.
  auto arrays = std::make_shared<ArraysCache>(4);
  for (int i = 0; i < 4; ++i) arrays->set(i, mx::zeros({kRows, 2, 2}));
  EXPECT_THROW(read(arrays.get(), 0, 2), Error);
}

INSTANTIATE_TEST_SUITE_P(
    All,
    Mixers,
    testing::Values(Case{"ShortConv", short_conv},
                    Case{"DeltaNet", delta_net},
                    Case{"KimiDeltaNet", kimi_delta_net},
                    Case{"Mamba", mamba},
                    Case{"Mamba2", mamba2},
                    Case{"PlamoMamba2", plamo_mamba2},
                    Case{"RgLru", rg_lru},
                    Case{"Rwkv7", rwkv7},
                    Case{"LightningAttention", lightning_attention},
                    Case{"ConvAttention", [] { return conv_attention(0); }},
                    Case{"ConvWindow", [] { return conv_attention(4); }},
                    Case{"SideBySide", side_by_side}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mlxlm::nn
