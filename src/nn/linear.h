// What models do with linear layers besides multiplying by them.
#pragma once

#include <span>
#include <vector>

#include "kernels/seam.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// x [..., K] -> [..., N].
mx::array apply(const mx::array& x, const kernels::Linear& linear);

// A layer whose rows are several layers' rows one after the other ("qkv_proj")
// as those layers; they share its memory.
std::vector<kernels::Linear> split_rows(const kernels::Linear& linear,
                                        std::span<const int> row_counts);

// The same of a layer whose rows come in `num_groups` equal groups, each with
// so many rows of every part. The rows are copied.
std::vector<kernels::Linear> split_row_groups(const kernels::Linear& linear,
                                              int num_groups,
                                              std::span<const int> row_counts);

// The layer whose answers are `factor` (one number) times this one's.
kernels::Linear times(const kernels::Linear& linear, const mx::array& factor);

// Matrix by matrix of a stack [H, N, K]: x [B, H, L, K] -> [B, H, L, N], or
// with `transposed` off x [B, H, L, N] -> [B, H, L, K]. One head of x serves
// all matrices.
mx::array stack_product(const mx::array& x,
                        const kernels::Linear& stack,
                        bool transposed);

// Rows of a layer used as a table: tokens [B, L] -> [B, L, K].
mx::array embed(const kernels::Linear& table,
                const mx::array& tokens,
                mx::Dtype dtype);

// The dtype that the layer's values have: its own, or if quantized that of the
// values it stands for.
mx::Dtype value_dtype(const kernels::Linear& linear);

// LowRank::row_scale of a DoRA layer: `magnitude` [N] over the lengths of the
// adapted rows.
mx::array dora_row_scale(const kernels::Linear& linear,
                         const kernels::LowRank& low_rank,
                         const mx::array& magnitude);

}  // namespace mlxlm::nn
