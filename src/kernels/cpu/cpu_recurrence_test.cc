// Recurrences: the CPU's against the reference, and in parts against whole.
#include <algorithm>
#include <functional>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/cpu/cpu_test_support.h"

namespace mlxlm::kernels {
namespace {

using cpu_test::CpuKernels;
using cpu_test::error_of;
using cpu_test::random;

constexpr float kTolerance = 2e-5f;

mx::array share(const mx::Shape& shape) { return mx::sigmoid(random(shape)); }

// x [B, T, ...]: [:, begin:end].
mx::array tokens(const mx::array& x, int begin, int end) {
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start[1] = begin;
  stop[1] = end;
  return mx::slice(x, start, stop);
}

class CpuRecurrence : public CpuKernels {
 protected:
  // scan(table, begin, end, state) of `num_tokens` tokens.
  using Scan = std::function<Scanned(
      const Table& table, int begin, int end, const mx::array& state)>;

  void check(int num_tokens, const mx::array& state, const Scan& scan) {
    auto expected = scan(reference_, 0, num_tokens, state);
    auto whole = scan(cpu_, 0, num_tokens, state);
    EXPECT_LT(error_of(whole.y, expected.y), kTolerance);
    if (state.size() > 0) {
      EXPECT_LT(error_of(whole.state, expected.state), kTolerance);
    }
    for (int chunk : {1, 7, num_tokens / 2}) {
      std::vector<mx::array> parts;
      auto carried = state;
      for (int begin = 0; begin < num_tokens; begin += chunk) {
        const int end = std::min(begin + chunk, num_tokens);
        auto part = scan(cpu_, begin, end, carried);
        parts.push_back(part.y);
        carried = part.state;
      }
      // Bit for bit.
      EXPECT_TRUE(
          mx::array_equal(mx::concatenate(parts, 1), whole.y).item<bool>())
          << "chunks of " << chunk;
      EXPECT_TRUE(mx::array_equal(carried, whole.state).item<bool>())
          << "chunks of " << chunk;
    }
  }
};

TEST_F(CpuRecurrence, CausalConvolutions) {
  for (int channels : {1, 5, 64}) {
    for (int taps : {1, 2, 4}) {
      CausalConv conv{random({channels, taps})};
      if (taps == 4) conv.bias = random({channels});
      conv.silu = channels == 64;
      auto x = random({2, 70, channels});
      check(70,
            random({2, taps - 1, channels}),
            [&](const Table& table, int begin, int end, const auto& state) {
              return table.causal_conv(tokens(x, begin, end), conv, state);
            });
    }
  }
}

TEST_F(CpuRecurrence, LinearAttentionWithAndWithoutErasing) {
  enum Kind { plain, delta, delta_per_key, erasing };
  for (Kind kind : {plain, delta, delta_per_key, erasing}) {
    for (int key_size : {1, 6, 32, 45}) {
      SCOPED_TRACE(kind);
      const int rows = 2, heads = 4, value_size = 40;
      auto q = random({rows, 20, 2, key_size});
      auto k = random({rows, 20, 2, key_size}, 0.2f);
      auto v = random({rows, 20, heads, value_size});
      auto per_key = share({rows, 20, heads, key_size});
      auto per_head = share({rows, 20, heads});
      auto write = random({rows, 20, heads, key_size}, 0.2f);
      check(20,
            random({rows, heads, value_size, key_size}),
            [&](const Table& table, int begin, int end, const auto& state) {
              auto part = [&](const mx::array& x) {
                return tokens(x, begin, end);
              };
              const bool by_key = kind == delta_per_key || kind == erasing;
              MatrixScan scan{.q = part(q),
                              .k = part(k),
                              .v = part(v),
                              .decay = part(by_key ? per_key : per_head)};
              if (kind == delta || kind == delta_per_key) {
                scan.beta = part(per_head);
              }
              if (kind == erasing) {
                scan.erase = mx::negative(part(write));
                scan.write = part(write);
              }
              return table.matrix_scan(scan, state);
            });
    }
  }
}

TEST_F(CpuRecurrence, SelectiveScans) {
  for (int state_size : {1, 3, 16, 19}) {
    auto x = random({2, 12, 70});
    auto step = share({2, 12, 70});
    auto a = mx::negative(mx::exp(random({70, state_size})));
    auto b = random({2, 12, state_size});
    auto c = random({2, 12, state_size});
    auto skip = random({70});
    check(12,
          random({2, 70, state_size}),
          [&](const Table& table, int begin, int end, const auto& state) {
            return table.selective_scan({.x = tokens(x, begin, end),
                                         .step = tokens(step, begin, end),
                                         .a = a,
                                         .b = tokens(b, begin, end),
                                         .c = tokens(c, begin, end),
                                         .skip = skip},
                                        state);
          });
  }
}

TEST_F(CpuRecurrence, DecayedSums) {
  auto x = random({2, 9, 21});
  auto decay = share({2, 9, 21});
  check(9,
        random({2, 21}),
        [&](const Table& table, int begin, int end, const auto& state) {
          return table.decayed_sum(
              tokens(x, begin, end), tokens(decay, begin, end), state);
        });
}

}  // namespace
}  // namespace mlxlm::kernels
