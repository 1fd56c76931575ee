// A second embedding of each token, with a part for every layer, and what the
// layers do with theirs. Method: mlx_lm/models/{gemma3n,gemma4_text}.py.
#pragma once

#include "kernels/seam.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// N: layers, P: size of a part.
struct PerLayerInputs {
  kernels::Linear table;       // [vocabulary, N * P]
  kernels::Linear projection;  // [N * P, D]
  kernels::Norm norm;          // [P]
  int num_layers = 0;
  int vocabulary_size = 0;

  // tokens [B, L] (those beyond the vocabulary count as 0), h [B, L, D] of the
  // first layer -> [B, L, N, P].
  mx::array operator()(const mx::array& tokens, const mx::array& h) const;
};

// Of one layer.
struct PerLayerGate {
  kernels::Linear gate;        // [P, D]
  kernels::Linear projection;  // [D, P]
  kernels::Norm norm;          // [D]

  // x [B, L, D], input [B, L, P] -> what is added to x, [B, L, D].
  mx::array operator()(const mx::array& x, const mx::array& input) const;
};

}  // namespace mlxlm::nn
