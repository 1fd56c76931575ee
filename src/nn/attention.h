// Attention of one layer.
#pragma once

#include <optional>

#include <mlxlm/cache.h>

#include "kernels/seam.h"
#include "nn/rope.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// Where a part's output goes: residual + post_norm(output) * scale.
struct Residual {
  const kernels::Norm* post_norm = nullptr;
  const mx::array* stream = nullptr;  // null: nothing is added
  float scale = 1.0f;
};

struct Attention {
  kernels::Linear q, k, v, o;
  std::optional<kernels::Norm> q_norm, k_norm;
  const Rope* rope = nullptr;  // null: no positions
  int num_heads = 0;
  int num_kv_heads = 0;
  AttendSpec spec;

  // x [B, L, D], `norm` (may be null) comes first; `cache` null: x is all there
  // is. Returns the heads' answers [B, H, L, Dv].
  mx::array attend(const mx::array& x,
                   const kernels::Norm* norm,
                   Cache* cache) const;

  // The same with the output projection: [B, L, D].
  mx::array operator()(const mx::array& x,
                       const kernels::Norm* norm,
                       Cache* cache,
                       const Residual& residual) const;
};

}  // namespace mlxlm::nn
