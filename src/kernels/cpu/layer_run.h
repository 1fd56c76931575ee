// What the operations around attention compute, on MLX's stream thread.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/project.h"
#include "kernels/cpu/rope.h"

namespace mlxlm::kernels::cpu {

using Weights = std::shared_ptr<const PackedLinear>;

// What an operation is followed by, where that is known (project_later()).
using ProductsAfter = std::vector<Product>;

struct BoundHead {
  Weights weights;
  int num_heads;
  std::optional<BoundNorm> norm;
  bool over_all_heads;
  std::shared_ptr<const RopeTable> rope;
};

// norm_heads() with its weights in the kernels' form.
struct BoundHeads {
  std::optional<BoundNorm> norm;
  std::vector<BoundHead> heads;
  ProductsAfter after;
};

// Norms' weights become `inputs`. The heads' ropes are left to the caller.
BoundHeads bind_heads(const Norm* norm,
                      std::span<const HeadProjection> projections,
                      std::vector<mx::array>& inputs);

// in: x [B, L, D] and the inputs above; out[i]: [B, H_i, L, D_i].
void run_norm_heads(const BoundHeads& layer,
                    std::span<const mx::array> in,
                    std::span<mx::array> out);

// finish_layer() with its weights in the kernels' form.
struct BoundEnd {
  Weights out, gate, up, down;  // gate may be null
  std::optional<BoundNorm> out_norm, mlp_norm, down_norm;
  GateFunction function;
  float scale;
  ProductsAfter after;
};

BoundEnd bind_end(const LayerEnd& end, std::vector<mx::array>& inputs);

// in: heads [B, H, L, D], x [B, L, D], and bind_end()'s inputs; out as x.
void run_finish_layer(const BoundEnd& end,
                      std::span<const mx::array> in,
                      mx::array& out);

}  // namespace mlxlm::kernels::cpu
