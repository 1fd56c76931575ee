// A decoder of two layers for tests of the step kernel, and what it should
// give: the operations of the seam in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/cuda/device.h"
#include "kernels/step.h"
#include "kernels/tables.h"
#include "kernels/test_layers.h"

namespace mlxlm::kernels {

constexpr int kCapacity = 768;

struct StepCase {
  const char* name;
  mx::Dtype dtype = mx::bfloat16;
  int bits = 4;
  int group_size = 64;
  int size = 1024;
  int hidden_size = 2048;
  int head_size = 128;
  int num_heads = 8;
  int num_kv_heads = 2;
  int rotated = 128;
  bool traditional = false;
  bool head_norms = false;
  bool biases = false;
  int window_tokens = 0;
  float softcap = 0;
  bool sinks = false;
  int num_experts = 0;  // 0: an MLP
  int num_chosen = 0;
  bool normalize = false;
  const char* mode = "affine";
};

inline std::ostream& operator<<(std::ostream& out, const StepCase& each) {
  return out << each.name;
}

inline mx::array random(mx::Shape shape, mx::Dtype dtype, float scale = 1.0f) {
  return mx::astype(test_layers::random(std::move(shape), scale), dtype);
}

// A decoder's layers, and the same in float32.
class CudaStepTest : public testing::TestWithParam<StepCase> {
 protected:
  static constexpr int kVocabulary = 650;

  struct Weights {
    Norm attention_norm, mlp_norm;
    std::optional<Norm> q_norm, k_norm;
    Linear q, k, v, o, gate, up, down;
    std::optional<mx::array> sinks;
    std::optional<Linear> router;
  };

  void SetUp() override {
    if (!cuda_table_usable() ||
        cuda::device_limits().compute_capability_major < 8) {
      GTEST_SKIP() << "there is no NVIDIA GPU of the Ampere generation";
    }
    mx::random::seed(11);
    const StepCase& c = GetParam();
    for (int i = 0; i < 2; ++i) layers_.push_back(make_layer(c));
    spec_ = {.embedding = &embedding_,
             .embedding_scale = 2.0f,
             .rope = {.dimensions = c.rotated, .traditional = c.traditional},
             .num_heads = c.num_heads,
             .num_kv_heads = c.num_kv_heads,
             .head_size = c.head_size,
             .residual_scale = 0.5f,
             .norm = &norm_,
             .head = &head_};
    for (const auto& layer : layers_) spec_.layers.push_back(step_of(c, layer));
  }

  static StepRow row_of(int position) {
    StepRow row{.position = position};
    for (int i = 0; i < 2; ++i) {
      row.layers.push_back({buffer(GetParam()), buffer(GetParam())});
      mx::eval(row.layers[i].keys, row.layers[i].values);
    }
    return row;
  }

  static mx::array buffer(const StepCase& c) {
    return random({1, c.num_kv_heads, kCapacity, c.head_size}, c.dtype);
  }

  static Norm norm(int size) {
    const StepCase& c = GetParam();
    return {.weight = mx::astype(
                mx::add(test_layers::random({size}, 0.1f), mx::array(1.0f)),
                c.dtype),
            .eps = 1e-5f};
  }

  // Of 16 bits: dense.
  static Linear linear(int rows, int columns, bool bias = false) {
    Linear made = matrix({rows, columns});
    if (bias) made.bias = random({rows}, GetParam().dtype);
    return made;
  }

  static Linear matrix(const mx::Shape& shape) {
    const StepCase& c = GetParam();
    auto weight =
        random(shape, c.dtype, 1 / std::sqrt(static_cast<float>(shape.back())));
    return c.bits == 16
               ? Linear{weight}
               : test_layers::quantize(weight, c.bits, c.group_size, c.mode);
  }

  static Weights make_layer(const StepCase& c) {
    const int q = c.num_heads * c.head_size;
    const int kv = c.num_kv_heads * c.head_size;
    Weights made{.attention_norm = norm(c.size),
                 .mlp_norm = norm(c.size),
                 .q = linear(q, c.size, c.biases),
                 .k = linear(kv, c.size, c.biases),
                 .v = linear(kv, c.size, c.biases),
                 .o = linear(c.size, q, c.biases),
                 .gate = linear(c.hidden_size, c.size, c.biases),
                 .up = linear(c.hidden_size, c.size, c.biases),
                 .down = linear(c.size, c.hidden_size, c.biases)};
    if (c.head_norms) {
      made.q_norm = norm(c.head_size);
      made.k_norm = norm(c.head_size);
    }
    if (c.sinks) made.sinks = random({c.num_heads}, c.dtype);
    if (c.num_experts > 0) {
      made.gate = matrix({c.num_experts, c.hidden_size, c.size});
      made.up = matrix({c.num_experts, c.hidden_size, c.size});
      made.down = matrix({c.num_experts, c.size, c.hidden_size});
      // Of a format of its own, as routers often are.
      made.router = test_layers::quantize(
          random({c.num_experts, c.size},
                 c.dtype,
                 1 / std::sqrt(static_cast<float>(c.size))),
          8,
          64);
    }
    return made;
  }

  static StepLayer step_of(const StepCase& c, const Weights& w) {
    StepLayer step{
        .attention_norm = &w.attention_norm,
        .q = &w.q,
        .k = &w.k,
        .v = &w.v,
        .o = &w.o,
        .q_norm = w.q_norm ? &*w.q_norm : nullptr,
        .k_norm = w.k_norm ? &*w.k_norm : nullptr,
        .attention_scale = 1 / std::sqrt(static_cast<float>(c.head_size)),
        .softcap = c.softcap,
        .window_tokens = c.window_tokens,
        .sinks = w.sinks ? &*w.sinks : nullptr,
        .mlp_norm = &w.mlp_norm,
        .gate = &w.gate,
        .up = &w.up,
        .down = &w.down};
    if (w.router) {
      step.experts = {.router = &*w.router,
                      .num_chosen = c.num_chosen,
                      .normalize = c.normalize,
                      .scale = 1.5f};
    }
    return step;
  }

  static mx::array wide(const mx::array& x) {
    return mx::astype(x, mx::float32);
  }
  static Linear wide(const Linear& linear) {
    Linear result = linear;
    if (linear.mode != "affine") {
      result = {mx::dequantize(linear.weight,
                               *linear.scales,
                               std::nullopt,
                               linear.group_size,
                               linear.bits,
                               linear.mode,
                               std::nullopt,
                               mx::float32)};
    } else if (linear.quantized()) {
      result.scales = wide(*linear.scales);
      result.zeros = wide(*linear.zeros);
    } else {
      result.weight = wide(linear.weight);
    }
    if (linear.bias) result.bias = wide(*linear.bias);
    return result;
  }
  static Norm wide(const Norm& norm) {
    Norm result = norm;
    result.weight = wide(*norm.weight);
    return result;
  }

  // The logits, and what the rows have at `position` afterwards.
  struct Expected {
    mx::array logits;
    std::vector<mx::array> keys, values;  // [1, Hkv, 1, Dh]
    // How far apart the logits of a chosen expert and one that isn't are at
    // least: rounding decides between those that are closer.
    float gap = 1e9f;
  };

  // [1, 1, D]
  mx::array embedded(int token) const {
    const Linear table = wide(embedding_);
    auto row = [&](const mx::array& x) {
      return mx::slice(x, {token, 0}, {token + 1, x.shape(1)});
    };
    auto value = table.quantized() ? mx::dequantize(row(table.weight),
                                                    row(*table.scales),
                                                    row(*table.zeros),
                                                    table.group_size,
                                                    table.bits)
                                   : row(table.weight);
    return mx::expand_dims(value, 0);
  }

  Expected expected(int token, const StepRow& row) const {
    const Table& ops = reference_table();
    auto h = mx::multiply(embedded(token), mx::array(spec_.embedding_scale));
    Expected result{.logits = h};
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      h = run_layer(ops, i, h, row, result);
    }
    const Norm norm = wide(norm_);
    result.logits = ops.head(h, &norm, wide(head_));
    return result;
  }

  mx::array run_layer(const Table& ops,
                      std::size_t i,
                      const mx::array& h,
                      const StepRow& row,
                      Expected& result) const {
    const int position = row.position;
    const auto& w = layers_[i];
    const auto& step = spec_.layers[i];
    const Norm norm = wide(w.attention_norm);
    const Linear q = wide(w.q), k = wide(w.k), v = wide(w.v);
    auto heads = ops.norm_linear(h, &norm, std::vector{&q, &k, &v});
    std::optional<Norm> q_norm, k_norm;
    if (w.q_norm) q_norm = wide(*w.q_norm), k_norm = wide(*w.k_norm);
    auto queries = ops.norm_rope(heads[0],
                                 spec_.num_heads,
                                 q_norm ? &*q_norm : nullptr,
                                 &spec_.rope,
                                 Positions(position));
    auto key = ops.norm_rope(heads[1],
                             spec_.num_kv_heads,
                             k_norm ? &*k_norm : nullptr,
                             &spec_.rope,
                             Positions(position));
    auto value = ops.norm_rope(
        heads[2], spec_.num_kv_heads, nullptr, nullptr, Positions(position));
    result.keys.push_back(key);
    result.values.push_back(value);
    const int first = step.window_tokens > 0
                          ? std::max(position + 1 - step.window_tokens, 0)
                          : 0;
    auto with = [&](const mx::array& buffer, const mx::array& last) {
      const mx::Shape stop{1, spec_.num_kv_heads, position, spec_.head_size};
      return mx::concatenate(
          {wide(mx::slice(buffer, {0, 0, first, 0}, stop)), last}, 2);
    };
    AttentionParameters parameters{.scale = step.attention_scale,
                                   .softcap = step.softcap};
    if (w.sinks) parameters.sinks = wide(*w.sinks);
    auto out = ops.attention(queries,
                             with(row.layers[i].keys, key),
                             with(row.layers[i].values, value),
                             parameters);
    out = mx::reshape(mx::transpose(out, {0, 2, 1, 3}), {1, 1, -1});
    auto x =
        ops.linear_residual(out, wide(w.o), nullptr, &h, spec_.residual_scale);
    const Norm mlp_norm = wide(w.mlp_norm);
    if (w.router) return run_experts(ops, w, x, result);
    const Linear gate = wide(w.gate);
    auto hidden =
        ops.norm_gated_mlp(x, &mlp_norm, &gate, wide(w.up), Activation::silu);
    return ops.linear_residual(
        hidden, wide(w.down), nullptr, &x, spec_.residual_scale);
  }

  static Linear of_expert(const Linear& stack, int expert) {
    const auto one = [&](const mx::array& x) {
      return mx::take(x, mx::array(expert), 0);
    };
    Linear result = stack;
    result.weight = one(stack.weight);
    if (stack.quantized()) {
      result.scales = one(*stack.scales);
      if (stack.zeros) result.zeros = one(*stack.zeros);
    }
    return wide(result);
  }

  mx::array run_experts(const Table& ops,
                        const Weights& w,
                        const mx::array& x,
                        Expected& result) const {
    const StepCase& c = GetParam();
    const Norm norm = wide(w.mlp_norm);
    const Linear router = wide(*w.router);
    auto logits = ops.norm_linear(x, &norm, std::vector{&router})[0];
    logits.eval();
    std::vector<std::pair<float, int>> order;
    double total = 0;
    for (int e = 0; e < c.num_experts; ++e) {
      order.emplace_back(-logits.data<float>()[e], e);
    }
    std::ranges::sort(order);
    for (int i = 0; i < (c.normalize ? c.num_chosen : c.num_experts); ++i) {
      total += std::exp(-order[i].first);
    }
    result.gap = std::min(
        result.gap, order[c.num_chosen].first - order[c.num_chosen - 1].first);
    auto y = x;
    for (int i = 0; i < c.num_chosen; ++i) {
      const auto [logit, expert] = order[i];
      const Linear gate = of_expert(w.gate, expert);
      auto hidden = ops.norm_gated_mlp(
          x, &norm, &gate, of_expert(w.up, expert), Activation::silu);
      const double weight = 1.5 * std::exp(-logit) / total;
      y = ops.linear_residual(
          hidden,
          of_expert(w.down, expert),
          nullptr,
          &y,
          static_cast<float>(weight) * spec_.residual_scale);
    }
    return y;
  }

  // Takes rows a token further; compares logits, and what the rows have.
  // Returns how many rows that was, as a close choice of experts may go either
  // way.
  int step_and_compare(Step& step, const std::vector<StepRow>& rows) {
    int num_compared = 0;
    std::vector<int> tokens;
    std::vector<Expected> wants;
    for (const auto& row : rows) {
      tokens.push_back(row.position * 7 % kVocabulary);
      wants.push_back(expected(tokens.back(), row));
      std::vector<mx::array> all = wants.back().keys;
      all.insert(
          all.end(), wants.back().values.begin(), wants.back().values.end());
      all.push_back(wants.back().logits);
      mx::eval(all);
    }
    const int count = static_cast<int>(rows.size());
    auto logits = step(mx::array(tokens.data(), {1, count}), rows, {}).logits;
    logits.eval();
    for (int m = 0; m < count; ++m) {
      const int position = rows[m].position;
      const auto& want = wants[m];
      if (want.gap < 0.01f) continue;
      ++num_compared;
      EXPECT_LT(error_of(mx::slice(logits, {0, m, 0}, {1, m + 1, kVocabulary}),
                         want.logits),
                0.06f)
          << "row " << m << " at position " << position;
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        auto last = [&](const mx::array& buffer) {
          return mx::slice(
              buffer,
              {0, 0, position, 0},
              {1, spec_.num_kv_heads, position + 1, spec_.head_size});
        };
        EXPECT_LT(error_of(last(rows[m].layers[i].keys), want.keys[i]), 0.06f);
        EXPECT_LT(error_of(last(rows[m].layers[i].values), want.values[i]),
                  0.06f);
      }
    }
    return num_compared;
  }

  static float error_of(const mx::array& actual, const mx::array& expected) {
    EXPECT_EQ(actual.shape(), expected.shape());
    auto size = mx::sqrt(mx::mean(mx::square(expected)));
    return mx::max(
               mx::divide(mx::abs(mx::subtract(wide(actual), expected)), size))
        .item<float>();
  }

  Linear embedding_ = linear(kVocabulary, GetParam().size);
  Linear head_ = linear(kVocabulary, GetParam().size);
  Norm norm_ = norm(GetParam().size);
  std::vector<Weights> layers_;
  StepSpec spec_;
};

}  // namespace mlxlm::kernels
