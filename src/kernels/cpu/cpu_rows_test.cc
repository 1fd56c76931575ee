// A row has the same bits alone and among others, in both modes: batches equal
// single runs, whole prompts chunked ones, verified drafts single steps.
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/cpu/cpu_test_support.h"
#include "kernels/seam.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace {

using cpu_test::CpuKernels;
using cpu_test::dense;
using cpu_test::quantize;
using cpu_test::quantized;
using cpu_test::random;

constexpr int kMostRows = 30;

class CpuRows : public CpuKernels {
 protected:
  void TearDown() override { set_cpu_mode(CpuMode::exact); }
};

bool same_bits(const mx::array& a, const mx::array& b) {
  const auto bits = a.itemsize() == 2 ? mx::uint16 : mx::uint32;
  return a.dtype() == b.dtype() &&
         mx::array_equal(mx::view(mx::contiguous(a), bits),
                         mx::view(mx::contiguous(b), bits))
             .item<bool>();
}

// Elements [begin, end) of an axis.
mx::array part(const mx::array& x, int axis, int begin, int end) {
  auto start = mx::Shape(x.ndim(), 0);
  auto stop = x.shape();
  start[axis] = begin;
  stop[axis] = end;
  return mx::slice(x, start, stop);
}

template <class F>
void expect_each_row_alone(const mx::array& x,
                           const F& f,
                           const std::string& what) {
  const auto last = f(part(x, 1, kMostRows - 1, kMostRows));
  for (int rows : {2, 3, 4, 5, 8, 9, 16, 17, 24, 25, kMostRows}) {
    const auto all = f(part(x, 1, kMostRows - rows, kMostRows));
    EXPECT_TRUE(same_bits(part(all, 1, rows - 1, rows), last))
        << what << ", " << rows << " rows";
  }
}

TEST_F(CpuRows, Products) {
  for (std::string mode : {"exact", "fast", "fastest"}) {
    set_cpu_mode(*cpu_mode_named(mode));
    for (int outputs : {16, 70, 200}) {
      const std::string name =
          mode + ", " + std::to_string(outputs) + " outputs, ";
      auto expect_alone =
          [&](const Linear& linear, int columns, const std::string& what) {
            const std::vector<const Linear*> linears{&linear};
            Norm norm{NormKind::rms, random({columns})};
            expect_each_row_alone(
                random({1, kMostRows, columns}),
                [&](const mx::array& x) {
                  return cpu_.norm_linear(x, &norm, linears)[0];
                },
                what);
          };
      for (auto [bits, group, dtype] : {std::tuple{2, 32, mx::float32},
                                        {3, 64, mx::float32},
                                        {4, 64, mx::bfloat16},
                                        {5, 32, mx::float16},
                                        {6, 128, mx::bfloat16},
                                        {8, 128, mx::float32}}) {
        expect_alone(quantized(outputs, 256, bits, group, dtype),
                     256,
                     name + std::to_string(bits) + " bits");
      }
      for (auto [format, bits, group] :
           {std::tuple{"mxfp4", 4, 32}, {"nvfp4", 4, 16}, {"mxfp8", 8, 32}}) {
        expect_alone(quantized(outputs, 256, bits, group, mx::float32, format),
                     256,
                     name + format);
      }
      for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
        expect_alone(dense(outputs, 77, dtype, /*bias=*/true),
                     77,
                     name + "not quantized");
      }
    }
  }
}

TEST_F(CpuRows, Experts) {
  auto stack = [&](int rows, int columns) {
    return quantize(random({5, rows, columns}, 0.3f), 4, 32);
  };
  Linear gate = stack(64, 32);
  Linear up = stack(64, 32);
  Linear down = stack(32, 64);
  Experts experts{&gate, &up, &down, Activation::silu};
  auto router = random({1, 32, 5});
  for (auto mode : {CpuMode::exact, CpuMode::fast, CpuMode::fastest}) {
    set_cpu_mode(mode);
    expect_each_row_alone(
        random({1, kMostRows, 32}),
        [&](const mx::array& x) {
          auto scores = mx::matmul(mx::zeros_like(x), router);
          scores = mx::add(scores, part(x, 2, 0, 5));
          auto chosen = part(mx::argsort(scores, -1), 2, 0, 2);
          return cpu_.expert_mlp(
              x, experts, chosen, mx::take_along_axis(scores, chosen, -1));
        },
        "experts");
  }
}

struct Lengths {
  int heads, kv_heads, head_size, keys;
};

class CpuRowsAttention : public CpuRows,
                         public testing::WithParamInterface<Lengths> {};

INSTANTIATE_TEST_SUITE_P(Shapes,
                         CpuRowsAttention,
                         testing::Values(Lengths{4, 4, 16, 40},
                                         Lengths{9, 3, 64, 1300},
                                         Lengths{4, 1, 20, 130},
                                         Lengths{4, 2, 7, 64},
                                         Lengths{8, 1, 80, 2500},
                                         Lengths{8, 2, 128, 900}));

// Query i of the last L alone, with the keys that it sees.
TEST_P(CpuRowsAttention, QueriesAloneAndTogether) {
  auto c = GetParam();
  for (auto dtype : {mx::float32, mx::float16}) {
    AttentionParameters parameters{.scale = 0.3f};
    if (dtype == mx::float16) {
      parameters.softcap = 3.0f;
      parameters.sinks = random({c.heads});
    }
    auto q = random({1, c.heads, kMostRows, c.head_size});
    const mx::Shape shape{1, c.kv_heads, c.keys, c.head_size};
    auto k = mx::astype(random(shape), dtype);
    auto v = mx::astype(random(shape), dtype);
    for (int rows : {2, 3, 5, 9, kMostRows}) {
      auto all = cpu_.attention(part(q, 2, 0, rows), k, v, parameters);
      for (int i : {0, rows / 2, rows - 1}) {
        const int seen = c.keys - rows + i + 1;
        auto alone = cpu_.attention(part(q, 2, i, i + 1),
                                    part(k, 2, 0, seen),
                                    part(v, 2, 0, seen),
                                    parameters);
        EXPECT_TRUE(same_bits(part(all, 2, i, i + 1), alone))
            << "query " << i << " of " << rows;
      }
    }
  }
}

TEST_P(CpuRowsAttention, BatchesOfTheSameLength) {
  auto c = GetParam();
  AttentionParameters parameters{.scale = 0.3f};
  auto q = random({8, c.heads, 1, c.head_size});
  auto k = random({8, c.kv_heads, c.keys, c.head_size});
  auto v = random({8, c.kv_heads, c.keys, c.head_size});
  auto all = cpu_.attention(q, k, v, parameters);
  for (int b : {0, 5}) {
    auto alone = cpu_.attention(part(q, 0, b, b + 1),
                                part(k, 0, b, b + 1),
                                part(v, 0, b, b + 1),
                                parameters);
    EXPECT_TRUE(same_bits(part(all, 0, b, b + 1), alone)) << b;
  }
}

// Rows of all lengths in one operation, which also writes their keys.
TEST_P(CpuRowsAttention, RowsOfABatch) {
  auto c = GetParam();
  struct Row {
    int num_tokens, num_keys;
    mx::array keys, values;
  };
  std::vector<Row> rows;
  int num_tokens = 0;
  for (auto [tokens, keys] : {std::pair{1, c.keys}, {3, 5}, {1, 1}, {9, 140}}) {
    mx::Shape shape{1, c.kv_heads, keys + 7, c.head_size};
    const auto dtype = rows.size() % 2 == 0 ? mx::float16 : mx::float32;
    auto held = [&] { return mx::astype(random(shape), dtype); };
    rows.push_back({tokens, keys, held(), held()});
    num_tokens += tokens;
  }
  AttentionParameters parameters{
      .scale = 0.3f, .softcap = 3.0f, .sinks = random({c.heads})};
  auto q = random({1, c.heads, num_tokens, c.head_size});
  auto k = random({1, c.kv_heads, num_tokens, c.head_size});
  auto v = random({1, c.kv_heads, num_tokens, c.head_size});
  std::vector<mx::array> alone;
  int first = 0;
  std::vector<BatchRow> batch;
  for (const Row& row : rows) {
    auto own = [&](const mx::array& x) {
      return part(x, 2, first, first + row.num_tokens);
    };
    const int at = row.num_keys - row.num_tokens;
    auto made = cpu_.append_attention(own(q),
                                      own(k),
                                      own(v),
                                      mx::copy(row.keys),
                                      mx::copy(row.values),
                                      at,
                                      row.num_keys,
                                      parameters);
    alone.insert(alone.end(), {made.out, made.keys, made.values});
    batch.push_back({mx::copy(row.keys),
                     mx::copy(row.values),
                     std::nullopt,
                     row.num_tokens,
                     at,
                     row.num_keys});
    first += row.num_tokens;
  }
  mx::eval(alone);
  auto made = cpu_.append_rows(q, k, v, batch, parameters);
  ASSERT_TRUE(made);
  first = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const int end = first + rows[i].num_tokens;
    EXPECT_TRUE(same_bits(part(made->out, 2, first, end), alone[3 * i])) << i;
    auto buffers =
        mx::depends({batch[i].keys, batch[i].values}, {made->written});
    EXPECT_TRUE(same_bits(buffers[0], alone[3 * i + 1])) << i;
    EXPECT_TRUE(same_bits(buffers[1], alone[3 * i + 2])) << i;
    first = end;
  }
}

TEST_F(CpuRows, NoBatchOfRowsInBfloat16) {
  auto x = mx::zeros({1, 1, 2, 4}, mx::float32);
  auto half = mx::zeros({1, 1, 8, 4}, mx::bfloat16);
  const std::vector<BatchRow> rows{{half, half, std::nullopt, 1, 0, 1},
                                   {half, half, std::nullopt, 1, 0, 1}};
  EXPECT_FALSE(cpu_.append_rows(x, x, x, rows, {}));
}

// A plain decoder of two layers, and rows of all lengths for it.
class CpuRowsStep : public CpuRows {
 protected:
  static constexpr int kSize = 64, kHeads = 4, kKvHeads = 2, kHeadSize = 32;

  void SetUp() override {
    CpuRows::SetUp();
    if (IsSkipped()) return;
    spec_ = {.embedding = &embedding_,
             .embedding_scale = 2.0f,
             .rope = {.dimensions = kHeadSize},
             .num_heads = kHeads,
             .num_kv_heads = kKvHeads,
             .head_size = kHeadSize,
             .layers = std::vector(2,
                                   StepLayer{.attention_norm = &norm_,
                                             .q = &q_,
                                             .k = &k_,
                                             .v = &v_,
                                             .o = &o_,
                                             .attention_scale = 0.2f,
                                             .sinks = &sinks_,
                                             .mlp_norm = &norm_,
                                             .gate = &gate_,
                                             .up = &up_,
                                             .down = &down_}),
             .norm = &norm_,
             .head = &embedding_};
  }

  StepRow row_of(int position) const {
    StepRow row{.position = position};
    for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
      const mx::Shape shape{1, kKvHeads, position + 3, kHeadSize};
      const auto dtype = position % 2 == 0 ? mx::float32 : mx::float16;
      row.layers.push_back(
          {mx::astype(random(shape), dtype), mx::astype(random(shape), dtype)});
    }
    return row;
  }

  static StepRow copy(const StepRow& row) {
    StepRow result{.position = row.position};
    for (const auto& [keys, values] : row.layers) {
      result.layers.push_back({mx::copy(keys), mx::copy(values)});
    }
    return result;
  }

  Linear embedding_ = quantized(90, kSize, 8, 32);
  Norm norm_{NormKind::rms, random({kSize})};
  Linear q_ = quantized(kHeads * kHeadSize, kSize, 4, 32);
  Linear k_ = quantized(kKvHeads * kHeadSize, kSize, 4, 32);
  Linear v_ = dense(kKvHeads * kHeadSize, kSize, mx::float16, /*bias=*/true);
  Linear o_ = quantized(kSize, kHeads* kHeadSize, 4, 32);
  Linear gate_ = quantized(96, kSize, 4, 32);
  Linear up_ = quantized(96, kSize, 4, 32);
  Linear down_ = quantized(kSize, 96, 4, 32);
  mx::array sinks_ = random({kHeads});
  StepSpec spec_;
};

TEST_F(CpuRowsStep, RowsOfABatch) {
  for (auto mode : {CpuMode::exact, CpuMode::fast, CpuMode::fastest}) {
    set_cpu_mode(mode);
    auto step = make_cpu_step(spec_);
    ASSERT_NE(step, nullptr);
    // More rows, then fewer, then one.
    for (std::vector<int> positions : {std::vector{0, 140, 7},
                                       {1, 700, 2, 9, 33, 128, 0, 5, 300, 127},
                                       {63}}) {
      std::vector<StepRow> rows;
      std::vector<int> tokens;
      for (int position : positions) {
        rows.push_back(row_of(position));
        tokens.push_back(position % 90);
      }
      std::vector<StepRow> apart;
      for (const StepRow& row : rows) apart.push_back(copy(row));
      const int count = static_cast<int>(rows.size());
      auto all = (*step)(mx::array(tokens.data(), {1, count}), rows, {});
      for (int i = 0; i < count; ++i) {
        auto alone =
            (*step)(mx::array({tokens[i]}, {1, 1}), {&apart[i], 1}, {});
        EXPECT_TRUE(same_bits(part(all.logits, 1, i, i + 1), alone.logits))
            << "row " << i << " of " << count;
        for (std::size_t layer = 0; layer < apart[i].layers.size(); ++layer) {
          const auto& [keys, values] = rows[i].layers[layer];
          const auto& [own_keys, own_values] = apart[i].layers[layer];
          EXPECT_TRUE(same_bits(keys, own_keys)) << i;
          EXPECT_TRUE(same_bits(values, own_values)) << i;
        }
      }
    }
  }
}

TEST_F(CpuRows, AttentionToQuantizedRows) {
  const int keys = 900;
  auto q = random({1, 4, 5, 64});
  auto k = random({1, 2, keys, 64});
  auto v = random({1, 2, keys, 64});
  AttentionParameters parameters{.scale = 0.3f};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    auto quantized = [&](int count, const mx::array& x) {
      auto parts = mx::quantize(part(x, 2, 0, count), 32, bits);
      return QuantizedTensor{parts[0], parts[1], parts[2], 32, bits};
    };
    auto all = cpu_.quantized_attention(
        q, quantized(keys, k), quantized(keys, v), parameters);
    for (int i : {0, 4}) {
      const int seen = keys - 5 + i + 1;
      auto alone = cpu_.quantized_attention(part(q, 2, i, i + 1),
                                            quantized(seen, k),
                                            quantized(seen, v),
                                            parameters);
      EXPECT_TRUE(same_bits(part(all, 2, i, i + 1), alone))
          << bits << " bits, query " << i;
    }
  }
}

}  // namespace
}  // namespace mlxlm::kernels
