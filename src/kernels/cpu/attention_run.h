// Attention of any shape as tasks of the instruction set's kernel, over the
// threads.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <utility>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/quantized_heads.h"
#include "kernels/seam.h"

namespace mlxlm::kernels::cpu {

// An array [B, H, L, D] with the elements of a head side by side; copied if
// they lie otherwise.
struct Heads {
  std::optional<Rows> copy;
  const float* data = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t head_stride = 0;
  std::ptrdiff_t token_stride = 0;

  Heads() = default;
  explicit Heads(const mx::array& x) : data(x.data<float>()) {
    if (x.shape(3) == 1 || x.strides(3) == 1) {
      row_stride = x.strides(0);
      head_stride = x.strides(1);
      token_stride = x.strides(2);
      return;
    }
    copy.emplace(x);
    data = copy->data();
    token_stride = x.shape(3);
    head_stride = token_stride * x.shape(2);
    row_stride = head_stride * x.shape(1);
  }

  const float* head(int b, int h) const {
    return data + b * row_stride + h * head_stride;
  }
};

// What attention is of: [B, H, L, D] queries with keys and values of H_kv
// heads, and where its result goes: y [B, H, L, D_v].
struct AttentionProblem {
  Heads q;
  Heads k;  // these or those
  Heads v;
  std::optional<QuantizedHeads> quantized_k;
  std::optional<QuantizedHeads> quantized_v;
  int batch, heads, kv_heads, queries, keys, head_size, value_size;
  float* y;
  std::size_t y_head_stride;
  const mx::array* mask;  // [B, H, L, T], or null
  const float* sinks;     // [H], or null
  const AttentionParameters& parameters;

  // Of k and v the first `num_keys` rows count.
  AttentionProblem(const mx::array& q,
                   const mx::array& k,
                   const mx::array& v,
                   int num_keys,
                   const mx::array* mask,
                   const float* sinks,
                   const AttentionParameters& parameters,
                   mx::array& y)
      : q(q),
        k(k),
        v(v),
        batch(q.shape(0)),
        heads(q.shape(1)),
        kv_heads(k.shape(1)),
        queries(q.shape(2)),
        keys(num_keys),
        head_size(q.shape(3)),
        value_size(v.shape(3)),
        y(y.data<float>()),
        y_head_stride(static_cast<std::size_t>(queries) * value_size),
        mask(mask),
        sinks(sinks),
        parameters(parameters) {}

  AttentionProblem(const mx::array& q,
                   QuantizedHeads k,
                   QuantizedHeads v,
                   const mx::array* mask,
                   const float* sinks,
                   const AttentionParameters& parameters,
                   mx::array& y)
      : q(q),
        quantized_k(std::move(k)),
        quantized_v(std::move(v)),
        batch(q.shape(0)),
        heads(q.shape(1)),
        kv_heads(quantized_k->num_heads()),
        queries(q.shape(2)),
        keys(quantized_k->num_rows()),
        head_size(q.shape(3)),
        value_size(quantized_v->row_size()),
        y(y.data<float>()),
        y_head_stride(static_cast<std::size_t>(queries) * value_size),
        mask(mask),
        sinks(sinks),
        parameters(parameters) {}

  int group() const { return heads / kv_heads; }

  // `count` of the queries from `first` on, and their part of y.
  void narrow(int first, int count) {
    q.data += first * q.token_stride;
    y += static_cast<std::size_t>(first) * value_size;
    queries = count;
  }

  // Row `b` of the queries, and its part of y, with keys and values of a row.
  void narrow_to_row(int b) {
    q.data += b * q.row_stride;
    y += static_cast<std::size_t>(b) * heads * y_head_stride;
    batch = 1;
  }
};

// All of these, side by side. A query's result is the same, bit by bit,
// whatever the number of queries, of problems and of threads.
void attend(std::span<const AttentionProblem> problems);

}  // namespace mlxlm::kernels::cpu
