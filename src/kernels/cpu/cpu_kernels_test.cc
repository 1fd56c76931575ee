// The CPU's kernels against the reference, over shapes that don't fit vectors,
// panels and tiles.
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/cpu/cpu_test_support.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/seam.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace {

using cpu_test::CpuKernels;
using cpu_test::dense;
using cpu_test::error_of;
using cpu_test::quantize;
using cpu_test::quantized;
using cpu_test::random;

constexpr float kTolerance = 2e-5f;

void expect_same_product(const Table& cpu,
                         const Table& reference,
                         const Linear& linear,
                         int rows,
                         int columns,
                         const std::string& what) {
  const std::vector<const Linear*> linears{&linear};
  auto x = random({1, rows, columns});
  EXPECT_LT(error_of(cpu.norm_linear(x, nullptr, linears)[0],
                     reference.norm_linear(x, nullptr, linears)[0]),
            kTolerance)
      << what << ", " << rows << " rows";
}

TEST_F(CpuKernels, AffineProductsOfAllBitsAndGroups) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      for (auto [outputs, dtype] : {std::tuple{40, mx::float32},
                                    {17, mx::bfloat16},
                                    {1, mx::float16}}) {
        Linear linear = quantized(outputs, 2 * group, bits, group, dtype);
        for (int rows : {1, 2, 3, 4, 5, 9, 24, 25}) {
          expect_same_product(
              cpu_,
              reference_,
              linear,
              rows,
              2 * group,
              std::to_string(bits) + " bits, group " + std::to_string(group));
        }
      }
    }
  }
}

TEST_F(CpuKernels, FloatingPointModes) {
  for (auto [mode, bits, group] :
       {std::tuple{"mxfp4", 4, 32}, {"mxfp8", 8, 32}, {"nvfp4", 4, 16}}) {
    Linear linear = quantized(35, 96, bits, group, mx::float32, mode);
    for (int rows : {1, 2, 3, 7, 8, 25}) {
      expect_same_product(cpu_, reference_, linear, rows, 96, mode);
    }
  }
}

TEST_F(CpuKernels, DenseProductsOfAllDtypes) {
  for (mx::Dtype dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (int columns : {1, 7, 33, 64}) {
      Linear linear = dense(19, columns, dtype, /*bias=*/true);
      for (int rows : {1, 2, 4, 6, 30}) {
        expect_same_product(cpu_, reference_, linear, rows, columns, "dense");
      }
    }
  }
}

TEST_F(CpuKernels, TwoFiftySixBitPatternsSurvivePacking) {
  // Every value of every width, through an identity.
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    auto x = mx::eye(32);
    Linear linear = quantized(16, 32, bits, 32);
    const std::vector<const Linear*> linears{&linear};
    auto expected = mx::transpose(
        mx::dequantize(linear.weight, *linear.scales, linear.zeros, 32, bits));
    auto actual = mx::reshape(
        cpu_.norm_linear(mx::expand_dims(x, 0), nullptr, linears)[0], {32, 16});
    EXPECT_LT(error_of(actual, expected), 1e-5f) << bits;
  }
}

TEST_F(CpuKernels, NormsAndSeveralProductsAtOnce) {
  for (int size : {32, 60, 7}) {
    Norm rms{NormKind::rms, random({size}), std::nullopt, 1e-6f};
    Norm layer{NormKind::layer, random({size}), random({size}), 1e-5f};
    Norm plain{NormKind::rms, std::nullopt, std::nullopt, 1e-6f};
    Norm half{NormKind::rms, mx::astype(random({size}), mx::bfloat16)};
    Linear a = dense(20, size, mx::float32);
    Linear b = dense(33, size, mx::bfloat16, true);
    const std::vector<const Linear*> linears{&a, &b};
    for (const Norm* norm : {&rms, &layer, &plain, &half}) {
      for (int rows : {1, 5, 40}) {
        auto x = random({1, rows, size});
        EXPECT_LT(error_of(cpu_.norm(x, *norm), reference_.norm(x, *norm)),
                  kTolerance);
        auto actual = cpu_.norm_linear(x, norm, linears);
        auto expected = reference_.norm_linear(x, norm, linears);
        for (int i : {0, 1}) {
          EXPECT_LT(error_of(actual[i], expected[i]), kTolerance);
        }
      }
    }
  }
}

TEST_F(CpuKernels, ResidualsPostNormsAndScales) {
  Linear linear = quantized(24, 64, 4, 32);
  Norm norm{NormKind::rms, random({24}), std::nullopt, 1e-6f};
  for (int rows : {1, 6}) {
    auto x = random({2, rows, 64});
    auto residual = random({2, rows, 24});
    for (const Norm* post :
         {static_cast<const Norm*>(nullptr), static_cast<const Norm*>(&norm)}) {
      for (const mx::array* add : {static_cast<const mx::array*>(nullptr),
                                   static_cast<const mx::array*>(&residual)}) {
        EXPECT_LT(
            error_of(cpu_.linear_residual(x, linear, post, add, 0.5f),
                     reference_.linear_residual(x, linear, post, add, 0.5f)),
            kTolerance);
      }
    }
  }
}

TEST_F(CpuKernels, GatedMlpsOfAllActivations) {
  Linear gate = quantized(37, 32, 4, 32);
  Linear up = quantized(37, 32, 8, 32);
  Norm norm{NormKind::rms, random({32}), std::nullopt, 1e-6f};
  for (auto activation : {Activation::silu,
                          Activation::gelu,
                          Activation::gelu_tanh,
                          Activation::gelu_fast,
                          Activation::relu,
                          Activation::relu_squared}) {
    for (int rows : {1, 11}) {
      auto x = random({1, rows, 32}, 3.0f);
      for (const Linear* g : {static_cast<const Linear*>(nullptr),
                              static_cast<const Linear*>(&gate)}) {
        EXPECT_LT(
            error_of(cpu_.norm_gated_mlp(x, &norm, g, up, activation),
                     reference_.norm_gated_mlp(x, &norm, g, up, activation)),
            kTolerance)
            << static_cast<int>(activation);
      }
    }
  }
}

TEST_F(CpuKernels, ExtremeInputsOfActivations) {
  auto eye = mx::eye(8);
  Linear up{eye};
  auto x = mx::reshape(
      mx::array({-1000.0f, -88.0f, -20.0f, -0.0f, 1e-30f, 20.0f, 88.0f, 1e4f}),
      {1, 1, 8});
  for (auto activation :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
    auto actual = cpu_.norm_gated_mlp(x, nullptr, nullptr, up, activation);
    auto expected =
        reference_.norm_gated_mlp(x, nullptr, nullptr, up, activation);
    EXPECT_TRUE(mx::allclose(actual, expected, 1e-5, 1e-6).item<bool>());
  }
}

TEST_F(CpuKernels, NormAndRope) {
  Norm per_head{NormKind::rms, random({12}), std::nullopt, 1e-6f};
  Norm whole{NormKind::rms, random({36}), std::nullopt, 1e-6f};
  Rope plain{.dimensions = 12};
  Rope partial{.dimensions = 8, .traditional = true, .base = 5000.0f};
  Rope scaled{.dimensions = 12,
              .scale = 0.25f,
              .freqs = mx::add(mx::abs(random({6})), mx::array(1.0f)),
              .input_scale = 1.3f};
  for (const Norm* norm : {static_cast<const Norm*>(nullptr),
                           static_cast<const Norm*>(&per_head),
                           static_cast<const Norm*>(&whole)}) {
    for (const Rope* rope : {static_cast<const Rope*>(nullptr),
                             static_cast<const Rope*>(&plain),
                             static_cast<const Rope*>(&partial),
                             static_cast<const Rope*>(&scaled)}) {
      for (auto [tokens, offset] :
           {std::pair{1, 0}, {1, 1000}, {5, 3}, {20, 77}}) {
        auto x = random({2, tokens, 36});
        EXPECT_LT(error_of(cpu_.norm_rope(x, 3, norm, rope, offset),
                           reference_.norm_rope(x, 3, norm, rope, offset)),
                  1e-4f)
            << tokens << " tokens at " << offset;
      }
    }
  }
}

struct AttentionCase {
  int heads, kv_heads, queries, keys, head_size, value_size;
};

class CpuAttention : public CpuKernels,
                     public testing::WithParamInterface<AttentionCase> {};

TEST_P(CpuAttention, EqualsTheReference) {
  auto c = GetParam();
  auto q = random({2, c.heads, c.queries, c.head_size});
  // Caches hand out slices of longer arrays.
  auto first = [&](const mx::array& x) {
    auto shape = x.shape();
    shape[2] = c.keys;
    return mx::slice(x, {0, 0, 0, 0}, shape);
  };
  auto k = first(random({2, c.kv_heads, c.keys + 9, c.head_size}));
  auto v = first(random({2, c.kv_heads, c.keys + 9, c.value_size}));
  AttentionParameters base;
  base.scale = 0.3f;
  auto half = [](const mx::array& x) { return mx::astype(x, mx::float16); };
  auto widened = [&](const mx::array& x) {
    return mx::astype(half(x), mx::float32);
  };
  auto check = [&](const AttentionParameters& parameters, const char* what) {
    EXPECT_LT(error_of(cpu_.attention(q, k, v, parameters),
                       reference_.attention(q, k, v, parameters)),
              kTolerance)
        << what;
    EXPECT_LT(
        error_of(cpu_.attention(q, half(k), half(v), parameters),
                 reference_.attention(q, widened(k), widened(v), parameters)),
        kTolerance)
        << what << ", of halves";
  };
  check(base, "causal");
  auto parameters = base;
  parameters.causal = false;
  check(parameters, "all");
  parameters = base;
  parameters.softcap = 2.0f;
  check(parameters, "softcap");
  if (c.head_size == c.value_size) {
    parameters = base;
    parameters.sinks = random({c.heads});
    check(parameters, "sinks");
  }
  parameters = base;
  parameters.mask =
      causal_mask(c.queries, c.keys, c.keys - c.queries, /*window=*/3);
  check(parameters, "window");
  parameters.mask = random({c.queries, c.keys});
  check(parameters, "added");
}

TEST_F(CpuKernels, AttentionToHalvesThatLieOtherwise) {
  auto q = random({1, 2, 3, 20});
  auto k = mx::astype(random({1, 1, 20, 9}), mx::float16);
  auto v = mx::astype(random({1, 1, 9, 20}), mx::float16);
  k = mx::swapaxes(k, 2, 3);
  EXPECT_LT(
      error_of(
          cpu_.attention(q, k, v, {}),
          reference_.attention(
              q, mx::astype(k, mx::float32), mx::astype(v, mx::float32), {})),
      kTolerance);
}

TEST_F(CpuKernels, HalvesAreTheNearest) {
  std::vector<float> numbers{0.0f, -0.0f, 65504.0f, 65519.0f, 1e-8f, -3e-8f};
  for (int exponent = -26; exponent < 15; ++exponent) {
    for (int i = 0; i < 8; ++i) {  // between halves, and on their middles
      const float x = 1.0f + static_cast<float>(i) / 4096.0f;
      numbers.push_back(std::ldexp(i % 3 == 0 ? -x : x, exponent));
    }
  }
  const int count = static_cast<int>(numbers.size());
  mx::array x(numbers.data(), {1, 1, 1, count}, mx::float32);
  EXPECT_TRUE(mx::array_equal(cpu_.to_half(x), mx::astype(x, mx::float16))
                  .item<bool>());
  const float large = std::numeric_limits<float>::infinity();
  mx::array limits({65520.0f, -1e9f, large, -large}, {1, 1, 4, 1});
  EXPECT_TRUE(
      mx::array_equal(cpu_.to_half(limits),
                      mx::array({65504.0f, -65504.0f, 65504.0f, -65504.0f},
                                {1, 1, 4, 1},
                                mx::float16))
          .item<bool>());
  const float none = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(mx::all(mx::isnan(cpu_.to_half(mx::full({1, 1, 1, 20}, none))))
                  .item<bool>());
}

TEST_F(CpuKernels, AttentionToQuantizedRowsEqualsTheReference) {
  auto q = random({1, 4, 5, 64});
  auto quantized = [](const mx::array& x, int bits) {
    auto parts = mx::quantize(x, 32, bits);
    return QuantizedTensor{parts[0], parts[1], parts[2], 32, bits};
  };
  for (int value_bits : {2, 3, 4, 5, 6, 8}) {
    auto k = quantized(random({1, 2, 70, 64}), 8);
    auto v = quantized(random({1, 2, 70, 32}), value_bits);
    AttentionParameters parameters{.scale = 0.3f};
    for (bool has_sinks : {false, true}) {
      if (has_sinks) parameters.sinks = random({4});
      EXPECT_LT(error_of(cpu_.quantized_attention(q, k, v, parameters),
                         reference_.quantized_attention(q, k, v, parameters)),
                kTolerance)
          << value_bits << has_sinks;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes,
                         CpuAttention,
                         testing::Values(AttentionCase{4, 2, 1, 1, 16, 16},
                                         AttentionCase{4, 2, 1, 700, 64, 64},
                                         AttentionCase{3, 1, 2, 65, 20, 20},
                                         AttentionCase{2, 2, 7, 7, 32, 32},
                                         AttentionCase{6, 3, 70, 130, 64, 64},
                                         AttentionCase{2, 1, 9, 200, 24, 40},
                                         AttentionCase{1, 1, 5, 64, 7, 5}));

TEST_F(CpuKernels, ExpertsChosenByFewAndManyTokens) {
  for (std::string mode : {"", "affine", "mxfp4", "nvfp4"}) {
    auto stack = [&](int rows, int columns) {
      auto w = random({5, rows, columns}, 0.3f);
      if (mode.empty()) return Linear{w};
      return quantize(w, 4, mode == "nvfp4" ? 16 : 32, mode);
    };
    Linear gate = stack(64, 32);
    Linear up = stack(64, 32);
    Linear down = stack(32, 64);
    gate.bias = random({5, 64});
    Experts experts{&gate, &up, &down, Activation::silu};
    for (int tokens : {1, 3, 90}) {
      auto x = random({1, tokens, 32});
      auto router = random({1, tokens, 5});
      auto indices =
          mx::slice(mx::argsort(router, -1), {0, 0, 0}, {1, tokens, 2});
      auto scores = mx::softmax(random({1, tokens, 2}), -1);
      EXPECT_LT(error_of(cpu_.expert_mlp(x, experts, indices, scores),
                         reference_.expert_mlp(x, experts, indices, scores)),
                kTolerance)
          << mode << ", " << tokens;
    }
  }
}

// MLX has these on GPUs only: the factors are made part of the scales.
TEST_F(CpuKernels, ExpertsWithScalesOfTheirOwn) {
  auto stack = [&](int rows, int columns) {
    return quantize(random({3, rows, columns}, 0.3f), 4, 16, "nvfp4");
  };
  Linear quantized[] = {stack(64, 32), stack(64, 32), stack(32, 64)};
  std::vector<Linear> floats;
  for (Linear& each : quantized) {
    each.global_scale = mx::array({2688.0f, 1000.0f, -33.3f});
    auto factors = mx::divide(*each.global_scale, mx::array(448.0f * 6.0f));
    auto values = mx::dequantize(each.weight,
                                 *each.scales,
                                 std::nullopt,
                                 16,
                                 4,
                                 "nvfp4",
                                 std::nullopt,
                                 mx::float32);
    floats.push_back(
        Linear{mx::multiply(values, mx::reshape(factors, {3, 1, 1}))});
  }
  auto experts_of = [](Linear* of) {
    return Experts{&of[0], &of[1], &of[2], Activation::silu};
  };
  auto x = random({1, 40, 32});
  auto indices = mx::reshape(
      mx::astype(mx::remainder(mx::arange(40), mx::array(3)), mx::uint32),
      {1, 40, 1});
  auto scores = mx::ones({1, 40, 1});
  EXPECT_LT(error_of(cpu_.expert_mlp(x, experts_of(quantized), indices, scores),
                     reference_.expert_mlp(
                         x, experts_of(floats.data()), indices, scores)),
            kTolerance);
}

TEST_F(CpuKernels, LayoutsOfInputsDontMatter) {
  Linear linear = quantized(16, 32, 4, 32);
  const std::vector<const Linear*> linears{&linear};
  auto x = mx::transpose(random({32, 6}));  // columns first
  auto expanded = mx::expand_dims(x, 0);
  EXPECT_LT(error_of(cpu_.norm_linear(expanded, nullptr, linears)[0],
                     reference_.norm_linear(expanded, nullptr, linears)[0]),
            kTolerance);
  auto last = mx::slice(random({1, 5, 32}), {0, 4, 0}, {1, 5, 32});
  EXPECT_LT(error_of(cpu_.norm_linear(last, nullptr, linears)[0],
                     reference_.norm_linear(last, nullptr, linears)[0]),
            kTolerance);
}

TEST_F(CpuKernels, OtherDtypesGoToTheReference) {
  Linear linear = dense(8, 16, mx::bfloat16);
  const std::vector<const Linear*> linears{&linear};
  auto x = mx::astype(random({1, 2, 16}), mx::bfloat16);
  EXPECT_EQ(cpu_.norm_linear(x, nullptr, linears)[0].dtype(), mx::bfloat16);
}

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int tasks : {0, 1, 2, 1000}) {
    std::vector<std::atomic<int>> counts(tasks);
    cpu::parallel_for(tasks, [&](int i) { counts[i].fetch_add(1); });
    for (auto& count : counts) EXPECT_EQ(count.load(), 1);
  }
}

TEST(ThreadPool, ManyCallersTakeTurns) {
  std::atomic<int> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        cpu::parallel_for(7, [&](int) { total.fetch_add(1); });
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 4 * 200 * 7);
}

TEST_F(CpuKernels, ConcatenatesTokens) {
  for (auto dtype : {mx::float32, mx::bfloat16, mx::uint32}) {
    auto x = mx::astype(random({2, 3, 5, 8}, 40.0f), dtype);
    // As they lie, parts of rows, none at all, turned, and one element for all.
    const std::vector<mx::array> parts{
        x,
        mx::slice(x, {0, 0, 1, 0}, {2, 3, 4, 8}),
        mx::slice(x, {0, 0, 2, 0}, {2, 3, 2, 8}),
        mx::slice(mx::swapaxes(mx::concatenate({x, x}, 2), 2, 3),
                  {0, 0, 0, 1},
                  {2, 3, 7, 9}),
        mx::broadcast_to(mx::array(3, dtype), {2, 3, 1, 8})};
    auto made = cpu_.concatenate_tokens(parts);
    EXPECT_EQ(made.dtype(), dtype);
    EXPECT_TRUE(mx::array_equal(made, mx::concatenate(parts, 2)).item<bool>());
  }
  const auto half = mx::zeros({1, 1, 2, 4}, mx::float16);
  EXPECT_EQ(cpu_.concatenate_tokens({half, mx::zeros({1, 1, 3, 4})}).dtype(),
            mx::float32);
}

}  // namespace
}  // namespace mlxlm::kernels
