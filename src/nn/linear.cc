#include "nn/linear.h"

#include <functional>

#include <mlx/mlx.h>

namespace mlxlm::nn {
namespace {

// Rows [begin, end) along the last axis but `from_last`.
mx::array slice_axis(const mx::array& a, int axis, int begin, int end) {
  const int index = axis < 0 ? static_cast<int>(a.ndim()) + axis : axis;
  mx::Shape start(a.ndim(), 0);
  mx::Shape stop = a.shape();
  start[index] = begin;
  stop[index] = end;
  return mx::slice(a, start, stop);
}

// Rows along `axis`, in num_groups groups: those from `begin` to `end` of each.
mx::array slice_groups(
    const mx::array& a, int axis, int num_groups, int begin, int end) {
  const int index = axis < 0 ? static_cast<int>(a.ndim()) + axis : axis;
  auto shape = a.shape();
  const int group_rows = shape[index] / num_groups;
  auto grouped = shape;
  grouped[index] = num_groups;
  grouped.insert(grouped.begin() + index + 1, group_rows);
  shape[index] = num_groups * (end - begin);
  return mx::reshape(slice_axis(mx::reshape(a, grouped), index + 1, begin, end),
                     shape);
}

mx::array take_rows(const mx::array& a, const mx::array& tokens) {
  return mx::take(a, tokens, 0);
}

using Slice = mx::array(const mx::array&, int axis, int begin, int end);

std::vector<kernels::Linear> split_by(const kernels::Linear& linear,
                                      std::span<const int> row_counts,
                                      const std::function<Slice>& slice) {
  std::vector<kernels::Linear> parts;
  int begin = 0;
  for (int rows : row_counts) {
    const int end = begin + rows;
    auto slice_if = [&](std::optional<mx::array>& a, int axis) {
      if (a) a = slice(*a, axis, begin, end);
    };
    auto part = linear;
    part.weight = slice(linear.weight, -2, begin, end);
    slice_if(part.scales, -2);
    slice_if(part.zeros, -2);
    slice_if(part.bias, -1);
    if (linear.low_rank) {
      auto low_rank = *linear.low_rank;
      low_rank.b = slice(low_rank.b, -1, begin, end);
      slice_if(low_rank.row_scale, -1);
      part.low_rank =
          std::make_shared<const kernels::LowRank>(std::move(low_rank));
    }
    parts.push_back(std::move(part));
    begin = end;
  }
  return parts;
}

}  // namespace

mx::array apply(const mx::array& x, const kernels::Linear& linear) {
  return kernels::table().linear_residual(x, linear, nullptr, nullptr, 1.0f);
}

std::vector<kernels::Linear> split_rows(const kernels::Linear& linear,
                                        std::span<const int> row_counts) {
  return split_by(linear, row_counts, slice_axis);
}

std::vector<kernels::Linear> split_row_groups(const kernels::Linear& linear,
                                              int num_groups,
                                              std::span<const int> row_counts) {
  return split_by(
      linear,
      row_counts,
      [num_groups](const mx::array& a, int axis, int begin, int end) {
        return slice_groups(a, axis, num_groups, begin, end);
      });
}

kernels::Linear times(const kernels::Linear& linear, const mx::array& factor) {
  auto scaled = linear;
  auto scale = [&](mx::array& a) {
    a = mx::astype(mx::multiply(a, factor), a.dtype());
  };
  if (linear.zeros) {
    scale(*scaled.scales);
    scale(*scaled.zeros);
  } else {
    // Other formats keep their scales as exponents.
    if (linear.quantized()) {
      scaled = kernels::Linear{.weight = kernels::dequantized_weight(linear),
                               .bias = linear.bias,
                               .low_rank = linear.low_rank};
    }
    scale(scaled.weight);
  }
  if (scaled.bias) scale(*scaled.bias);
  if (scaled.low_rank) {
    auto low_rank = *scaled.low_rank;
    scale(low_rank.b);
    scaled.low_rank =
        std::make_shared<const kernels::LowRank>(std::move(low_rank));
  }
  return scaled;
}

mx::array stack_product(const mx::array& x,
                        const kernels::Linear& stack,
                        bool transposed) {
  if (stack.quantized()) {
    return mx::astype(mx::quantized_matmul(x,
                                           stack.weight,
                                           *stack.scales,
                                           stack.zeros,
                                           transposed,
                                           stack.group_size,
                                           stack.bits,
                                           stack.mode),
                      x.dtype());
  }
  auto weight = mx::astype(stack.weight, x.dtype());
  return mx::matmul(x, transposed ? mx::swapaxes(weight, -1, -2) : weight);
}

mx::array embed(const kernels::Linear& table,
                const mx::array& tokens,
                mx::Dtype dtype) {
  const auto& kernels = kernels::table();
  auto from_basis = [&](const mx::array& y) {
    return mx::astype(
        table.rotation ? kernels::rotate(y, *table.rotation, /*back=*/true) : y,
        dtype);
  };
  if (table.prepared && kernels.embed != nullptr && !table.low_rank) {
    return from_basis(kernels.embed(table, tokens));
  }
  auto rows = table;
  rows.weight = take_rows(table.weight, tokens);
  if (table.scales) rows.scales = take_rows(*table.scales, tokens);
  if (table.zeros) rows.zeros = take_rows(*table.zeros, tokens);
  auto y = table.quantized() || table.low_rank
               ? kernels::dequantized_weight(rows)
               : rows.weight;
  if (const auto* low_rank = table.low_rank.get()) {
    auto z = mx::matmul(take_rows(mx::transpose(low_rank->b), tokens),
                        mx::transpose(low_rank->a));
    y = mx::add(y, mx::multiply(z, mx::array(low_rank->scale, z.dtype())));
    if (low_rank->row_scale) {
      auto scale = take_rows(*low_rank->row_scale, tokens);
      y = mx::multiply(y, mx::expand_dims(scale, -1));
    }
  }
  return from_basis(y);
}

mx::Dtype value_dtype(const kernels::Linear& linear) {
  if (!linear.quantized()) return linear.weight.dtype();
  // The formats without zeros keep their scales as bytes.
  return linear.zeros ? linear.scales->dtype() : mx::bfloat16;
}

mx::array dora_row_scale(const kernels::Linear& linear,
                         const kernels::LowRank& low_rank,
                         const mx::array& magnitude) {
  auto delta = mx::multiply(
      mx::transpose(mx::matmul(mx::astype(low_rank.a, mx::float32),
                               mx::astype(low_rank.b, mx::float32))),
      mx::array(low_rank.scale));
  auto adapted = mx::add(kernels::dequantized_weight(linear), delta);
  auto lengths = mx::sqrt(mx::sum(mx::square(adapted), -1));
  return mx::divide(mx::astype(magnitude, mx::float32), lengths);
}

}  // namespace mlxlm::nn
