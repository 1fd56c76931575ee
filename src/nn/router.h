// Which experts work on a token, and how much each counts.
#pragma once

#include <optional>

#include "kernels/seam.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// How logits become scores.
enum class RouterScore {
  softmax,         // over all experts
  sigmoid,         // of each
  sqrt_softplus,   // of each
  chosen_softmax,  // of the chosen ones alone (Mixtral)
  chosen_sigmoid,  // the same choice, then as sigmoid
  sparse_mixer,    // one after the other, each among those close to it (PhiMoE)
};

// A group of experts is as good as its best, or as its two best together.
enum class GroupScore { best, best_two };

struct RouterSpec {
  RouterScore score = RouterScore::softmax;
  int num_chosen = 1;
  // Only experts of the best groups are chosen from.
  int num_groups = 1;
  int num_chosen_groups = 1;
  float dropped_score = 0.0f;  // of the experts of the others
  GroupScore group_score = GroupScore::best_two;
  bool normalize = false;  // the chosen scores sum to 1
  float scale = 1.0f;      // of the scores, after that
  float logit_scale = 1.0f;
  float softcap = 0.0f;  // of the logits; 0: off
  float jitter = 0.0f;   // sparse_mixer: how close the others must be
};

struct Router {
  kernels::Linear linear;                   // [E, D]
  std::optional<mx::array> selection_bias;  // [E], added to choose only
  std::optional<mx::array> expert_scale;    // [E], multiplies the scores
  // [V, num_chosen]: the experts of each token, whatever the scores are.
  std::optional<mx::array> table;
  RouterSpec spec;

  struct Choice {
    mx::array indices;  // [B, L, num_chosen]
    mx::array scores;   // the same, float32
  };
  // x [B, L, D], tokens [B, L] (with a table). Method: group_expert_select of
  // mlx_lm/models/deepseek_v3.py, sparsemixer of phimoe.py.
  Choice operator()(const mx::array& x,
                    const mx::array* tokens = nullptr) const;
};

}  // namespace mlxlm::nn
