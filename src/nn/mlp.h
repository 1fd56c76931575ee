// The part of a layer after attention: one MLP, or a choice of experts.
#pragma once

#include <optional>

#include "kernels/seam.h"
#include "nn/attention.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct Mlp {
  std::optional<kernels::Linear> gate;  // none: down(activation(up(x)))
  kernels::Linear up, down;
  kernels::Activation activation = kernels::Activation::silu;
  std::optional<kernels::Norm> hidden_norm;  // before down

  // Whether kernels::finish_layer computes all of it.
  bool fusible() const { return !hidden_norm; }

  // x [B, L, D] -> [B, L, D]; `norm` (may be null) comes first.
  mx::array operator()(const mx::array& x,
                       const kernels::Norm* norm,
                       const Residual& residual) const;
};

enum class Router {
  top_k_softmax,  // softmax over the chosen logits (Mixtral)
  softmax_top_k,  // the chosen of the softmax over all (Qwen)
};

struct Experts {
  kernels::Linear router;  // [E, D]
  Router kind = Router::softmax_top_k;
  int num_chosen = 1;
  bool normalize = false;          // the chosen scores sum to 1
  kernels::Linear gate, up, down;  // [E, ...]
  kernels::Activation activation = kernels::Activation::silu;
  std::optional<Mlp> shared;                   // works on every token
  std::optional<kernels::Linear> shared_gate;  // [1, D], scales it

  mx::array operator()(const mx::array& x,
                       const kernels::Norm* norm,
                       const Residual& residual) const;

 private:
  struct Choice {
    mx::array indices;  // [B, L, num_chosen]
    mx::array scores;
  };
  Choice choose(const mx::array& x) const;
};

}  // namespace mlxlm::nn
