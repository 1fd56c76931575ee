// Which nodes of a graph make no memory of their own.
#pragma once

#include <mlx/array.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

// Whether the outputs of the array's node show the memory of its inputs. The
// array has a primitive.
bool is_view(const mx::array& array);

}  // namespace mlxlm::kernels
