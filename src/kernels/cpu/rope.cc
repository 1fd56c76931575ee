#include "kernels/cpu/rope.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

// Frequencies as mx::fast::rope computes them, and in float32 as there.
std::vector<float> inverse_frequencies(const Rope& rope) {
  const int half = rope.dimensions / 2;
  std::vector<float> result(half);
  if (rope.freqs) {
    auto freqs = mx::contiguous(mx::astype(*rope.freqs, mx::float32));
    freqs.eval();
    for (int i = 0; i < half; ++i) result[i] = 1.0f / freqs.data<float>()[i];
    return result;
  }
  const float step = std::log(rope.base) / static_cast<float>(half);
  for (int i = 0; i < half; ++i) {
    result[i] = std::exp(-static_cast<float>(i) * step);
  }
  return result;
}

// What a table depends on.
struct RopeKey {
  int dimensions;
  bool traditional;
  float base;
  float scale;
  float input_scale;
  std::uintptr_t freqs;
  std::vector<TokenRun> runs;
  bool operator==(const RopeKey&) const = default;
};

struct NormedTag {};

}  // namespace

RopeTable::RopeTable(const Rope& rope, const std::vector<TokenRun>& runs)
    : half(rope.dimensions / 2), interleaved(rope.traditional) {
  const std::vector<float> frequencies = inverse_frequencies(rope);
  for (const TokenRun& run : runs) {
    num_tokens += run.num_tokens;
    for (int t = 0; t < run.num_tokens; ++t) {
      const float position = static_cast<float>(run.offset + t) * rope.scale;
      for (float frequency : frequencies) {
        const float angle = position * frequency;
        cosines.push_back(std::cos(angle) * rope.input_scale);
        sines.push_back(std::sin(angle) * rope.input_scale);
      }
    }
  }
}

void RopeTable::rotate(float* x, int i) const {
  const std::size_t at = static_cast<std::size_t>(i % num_tokens) * half;
  isa_kernels().rotate(
      x, cosines.data() + at, sines.data() + at, half, interleaved);
}

// The layers of one step share a table: the last few made are kept.
std::shared_ptr<const RopeTable> rope_table(const Rope* wanted,
                                            const Positions& positions,
                                            int num_tokens) {
  if (wanted == nullptr) return nullptr;
  const Rope& rope = *wanted;
  struct Entry {
    RopeKey key;
    std::optional<mx::array> freqs;  // kept, so that its id stays its own
    std::shared_ptr<const RopeTable> table;
  };
  constexpr std::size_t kKept = 4;
  thread_local std::deque<Entry> kept;
  RopeKey key{rope.dimensions,
              rope.traditional,
              rope.base,
              rope.scale,
              rope.input_scale,
              rope.freqs ? rope.freqs->id() : 0,
              positions.runs(num_tokens)};
  for (const Entry& each : kept) {
    if (each.key == key) return each.table;
  }
  if (kept.size() == kKept) kept.pop_front();
  kept.push_back(
      {key, rope.freqs, std::make_shared<RopeTable>(rope, key.runs)});
  return kept.back().table;
}

void turn(const float* x,
          int first,
          int count,
          int tokens,
          int num_heads,
          int head_size,
          const RopeTable* rope,
          float* y) {
  const std::size_t head_stride = static_cast<std::size_t>(tokens) * head_size;
  auto one = [&](int row) {
    const int i = first + row;
    const int token = i % tokens;
    const float* from =
        x + static_cast<std::size_t>(row) * num_heads * head_size;
    float* to = y + i / tokens * num_heads * head_stride +
                static_cast<std::size_t>(token) * head_size;
    for (int h = 0; h < num_heads; ++h) {
      if (from != to) std::copy(from, from + head_size, to);
      if (rope != nullptr) rope->rotate(to, i);
      from += head_size;
      to += head_stride;
    }
  };
  // Few tokens are done sooner than they are handed out.
  constexpr int kManyTokens = 8;
  if (count < kManyTokens) {
    for (int row = 0; row < count; ++row) one(row);
  } else {
    parallel_for(count, one);
  }
}

mx::array norm_rope(const mx::array& x,
                    int num_heads,
                    const Norm* norm,
                    const Rope* rope,
                    const Positions& positions) {
  if (x.dtype() != mx::float32) {
    return reference_table().norm_rope(x, num_heads, norm, rope, positions);
  }
  const int batch = x.shape(0);
  const int tokens = x.shape(1);
  const int width = x.shape(2);
  const int head_size = width / num_heads;
  std::vector<mx::array> inputs{x};
  std::optional<BoundNorm> bound;
  if (norm != nullptr) bound.emplace(*norm, inputs);
  const bool over_all_heads =
      norm != nullptr && norm->weight && norm->weight->shape(0) == width;
  auto table = rope_table(rope, positions, tokens);
  return host_op("cpu_norm_rope",
                 {{{batch, num_heads, tokens, head_size}, mx::float32}},
                 std::move(inputs),
                 [=](auto in, auto out) {
                   Rows rows(in[0]);
                   const float* data = rows.data();
                   if (bound) {
                     const int size = over_all_heads ? width : head_size;
                     float* normed = scratch<NormedTag>(in[0].size());
                     bound->apply(in, data, in[0].size() / size, size, normed);
                     data = normed;
                   }
                   turn(data,
                        0,
                        batch * tokens,
                        tokens,
                        num_heads,
                        head_size,
                        table.get(),
                        out[0].template data<float>());
                 })[0];
}

}  // namespace mlxlm::kernels::cpu
