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

// Whether the elements of a head of x [B, H, L, D] lie side by side.
inline bool side_by_side(const mx::array& x) {
  return x.shape(3) == 1 || x.strides(3) == 1;
}

// An array [B, H, L, D], float32 or float16, with the elements of a head side
// by side; copied, as float32, if they lie otherwise or where that is asked
// for.
class Heads {
 public:
  explicit Heads(const mx::array& x, bool copied = false)
      : data_(x.data<std::byte>()), half_(x.dtype() == mx::float16) {
    if (side_by_side(x) && !copied) {
      row_stride_ = x.strides(0);
      head_stride_ = x.strides(1);
      token_stride_ = x.strides(2);
      return;
    }
    copy_.emplace(x);
    data_ = reinterpret_cast<const std::byte*>(copy_->data());
    half_ = false;
    token_stride_ = x.shape(3);
    head_stride_ = token_stride_ * x.shape(2);
    row_stride_ = head_stride_ * x.shape(1);
  }

  bool half() const { return half_; }
  // The rows of a head from a token on.
  HeadRows head(int b, int h, int token = 0) const {
    const std::ptrdiff_t at =
        b * row_stride_ + h * head_stride_ + token * token_stride_;
    return {.data = data_ + at * (half_ ? 2 : 4),
            .stride = token_stride_,
            .bits = half_ ? 16 : 32};
  }
  // The same of float32.
  const float* floats(int b, int h, int token = 0) const {
    return static_cast<const float*>(head(b, h, token).data);
  }
  std::ptrdiff_t head_stride() const { return head_stride_; }
  std::ptrdiff_t token_stride() const { return token_stride_; }

 private:
  std::optional<Rows> copy_;
  const std::byte* data_;
  bool half_;
  std::ptrdiff_t row_stride_ = 0;
  std::ptrdiff_t head_stride_ = 0;
  std::ptrdiff_t token_stride_ = 0;
};

// Tokens [first, first + count) of rows, and the buffer's row that the first of
// them goes to.
struct Written {
  int first;
  int count;
  int at;
  int row = 0;  // the batch row that goes to the buffer's first
};

// Writes float32 rows [B, H, L, D] into a buffer [B', H, T, D] of a cache,
// float32 or float16.
void write_rows(const mx::array& rows,
                const Written& written,
                const mx::array& buffer);

// What attention is of: [B, H, L, D] queries with keys and values of H_kv
// heads, and where its result goes: y [B, H, L, D_v].
struct AttentionProblem {
  Heads q;
  std::optional<Heads> k;  // these or those
  std::optional<Heads> v;
  std::optional<QuantizedHeads> quantized_k;
  std::optional<QuantizedHeads> quantized_v;
  int batch, heads, kv_heads, queries, keys, head_size, value_size;
  int first_row = 0;  // of the queries' batch rows, and of a row's queries
  int first_query = 0;
  float* y;
  std::size_t y_head_stride;
  const mx::array* mask;  // [B, H, L, T], or null
  const float* sinks;     // [H], or null
  const AttentionParameters& parameters;

  // Of k and v, which are of one dtype, the first `num_keys` rows count.
  AttentionProblem(const mx::array& q,
                   const mx::array& k,
                   const mx::array& v,
                   int num_keys,
                   const mx::array* mask,
                   const float* sinks,
                   const AttentionParameters& parameters,
                   mx::array& y)
      : q(q),
        k(Heads(k, !side_by_side(v))),
        v(Heads(v, !side_by_side(k))),
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
    first_query = first;
    y += static_cast<std::size_t>(first) * value_size;
    queries = count;
  }

  // Row `b` of the queries, and its part of y, with keys and values of a row.
  void narrow_to_row(int b) {
    first_row = b;
    y += static_cast<std::size_t>(b) * heads * y_head_stride;
    batch = 1;
  }
};

// All of these, side by side. A query's result is the same, bit by bit,
// whatever the number of queries, of problems and of threads.
void attend(std::span<const AttentionProblem> problems);

}  // namespace mlxlm::kernels::cpu
