// Rows of a cache's arrays: axis 2 of [B, H, T, D] is time.
#pragma once

#include <optional>

#include <mlx/array.h>

namespace mlxlm {

namespace mx = mlx::core;

// Buffers grow by multiples of this, as the reference's.
inline constexpr int kCacheStepTokens = 256;

// array[:, :, from:to]
mx::array rows_of(const mx::array& array, int from, int to);

// array[:, :, at:at + rows.shape(2)] = rows, as a new array.
mx::array with_rows(const mx::array& array, const mx::array& rows, int at);

// Writes `rows` after the first `used` of `buffer`, growing it first where it
// is too short. Throws Error{argument} if the shapes belong to different
// models.
void append_rows(std::optional<mx::array>& buffer,
                 const mx::array& rows,
                 int used);

// Throws Error{argument} unless `rows` can stand behind `held` in time.
void check_same_rows(const mx::array& held, const mx::array& rows);

std::size_t nbytes_of(const std::optional<mx::array>& array);

}  // namespace mlxlm
