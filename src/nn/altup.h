// Layers that work on several streams at once: all are predicted, one of them
// passes through the layer, and what it learns there corrects the others.
// Method: alternating updates, arXiv:2301.13310; mlx_lm/models/gemma3n.py.
#pragma once

#include <optional>
#include <vector>

#include "kernels/seam.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// Of one layer. A: streams.
struct AltUp {
  kernels::Linear router;      // [A, D]
  kernels::Linear prediction;  // [A * A, A]
  kernels::Linear correction;  // [A, A]
  kernels::Norm router_norm;
  int active = 0;

  // streams [A, B, L, D] -> [A, B, L, D].
  mx::array predict(const mx::array& streams) const;
  // `activated` [B, L, D] is what the layer made of the active prediction.
  mx::array correct(const mx::array& predictions,
                    const mx::array& activated) const;

 private:
  mx::array modalities(const mx::array& x) const;  // [B, L, D] -> [B, L, A]
};

// Before the first layer: h [B, L, D] and its projections, as large as h.
mx::array split_streams(const mx::array& h,
                        const std::vector<kernels::Linear>& projections);

// After the last: the mean of the first stream and the projections of the
// others, as large as the first. [A, B, L, D] -> [B, L, D].
mx::array join_streams(const mx::array& streams,
                       const std::vector<kernels::Linear>& projections);

// streams[index] of [A, B, L, D].
mx::array stream(const mx::array& streams, int index);

// x + norm(right(left(x))): a way around attention of low rank.
struct Laurel {
  kernels::Linear left, right;
  kernels::Norm norm;

  mx::array operator()(const mx::array& x) const;
};

}  // namespace mlxlm::nn
