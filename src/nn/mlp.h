// The part of a layer after attention: one MLP, or a choice of experts.
#pragma once

#include <optional>
#include <vector>

#include "kernels/seam.h"
#include "nn/activations.h"
#include "nn/attention.h"
#include "nn/router.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct Mlp {
  std::optional<kernels::Linear> gate;  // none: down(activation(up(x)))
  kernels::Linear up, down;
  bool partial = false;  // some of the hidden numbers: sums over the ranks
  kernels::Activation activation = kernels::Activation::silu;
  Activation own_activation;                 // in its place, if any
  kernels::GateClamp clamp;                  // only with a gate
  std::optional<kernels::Norm> hidden_norm;  // before down

  // Whether kernels::finish_layer computes all of it.
  bool fusible() const {
    return !own_activation && !hidden_norm && !clamp.active();
  }

  std::vector<kernels::Linear*> linears();

  // x [B, L, D] -> [B, L, D]; `norm` (may be null) comes first.
  mx::array operator()(const mx::array& x,
                       const kernels::Norm* norm,
                       const Residual& residual) const;

 private:
  // What goes into down: [B, L, F].
  mx::array hidden(const mx::array& x, const kernels::Norm* norm) const;
};

// How the shared expert's answer joins the chosen ones'.
enum class SharedGate {
  none,     // added
  sigmoid,  // times sigmoid(gate(x)) [B, L, 1]
  mix,      // softmax(gate(x)) [B, L, 2] weighs the chosen ones' and its own
};

// Parts of a mixture that read the layer's state through norms of their own in
// place of the common one, and whose answers are normalized (Gemma 4).
struct ExpertNorms {
  std::optional<kernels::Norm> router, chosen, chosen_output, shared_output;
  // Of what to_latent makes, and of the sum that from_latent gets.
  std::optional<kernels::Norm> latent, latent_output;
  // Muse Spark: each expert's answer times the gain is normalized before the
  // sum, and the sum is multiplied by a gain [D].
  struct Each {
    mx::array gain;
    kernels::Norm norm;
  };
  std::optional<Each> each;
  std::optional<mx::array> output_gain;
};

struct Experts {
  Router router;
  ExpertNorms norms;
  // Of the router's indices those from this one on stand for x itself.
  int num_experts = 0;
  bool scale_input = false;  // x times the score goes in, not the answer
  std::optional<kernels::Linear> gate;  // [E, F, D], none as in Mlp
  kernels::Linear up, down;             // [E, ...]
  // Some of each one's hidden numbers, and of the shared one's.
  bool partial = false;
  kernels::Activation activation = kernels::Activation::silu;
  kernels::GateClamp clamp;
  std::optional<Mlp> shared;  // works on every token
  // Around the chosen experts, which work on a smaller width between them.
  std::optional<kernels::Linear> to_latent, from_latent;
  SharedGate shared_kind = SharedGate::none;
  std::optional<kernels::Linear> shared_gate;  // [1 or 2, D]

  std::vector<kernels::Linear*> linears();

  // `tokens` [B, L]: those that x is of; null where the router needs none.
  mx::array operator()(const mx::array& x,
                       const kernels::Norm* norm,
                       const Residual& residual,
                       const mx::array* tokens = nullptr) const;

 private:
  mx::array answer_of_chosen(const mx::array& x,
                             const mx::array& router_input,
                             const mx::array* tokens) const;
  // The sum of the answers, each normalized. indices, scores [B, L, k].
  mx::array sum_of_normed(const mx::array& x,
                          const kernels::Experts& experts,
                          const mx::array& indices,
                          const mx::array& scores) const;
  mx::array with_shared(const mx::array& x, const mx::array& chosen) const;
  // Whether each part is to be summed over the ranks by itself, as what follows
  // isn't linear; else all is at the end.
  bool sums_parts() const {
    return partial && (norms.latent_output || from_latent ||
                       norms.chosen_output || norms.shared_output);
  }
};

}  // namespace mlxlm::nn
