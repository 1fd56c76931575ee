// The filters between the model's log-probabilities and the draw: each masks
// tokens with -inf. Method: mlx_lm/sample_utils.py.
//
// logprobs [B, V] -> [B, V] of the same dtype; options are already checked.
#pragma once

#include <vector>

#include <mlx/array.h>

namespace mlxlm {

namespace mx = mlx::core;

// Keeps the most probable tokens up to a share `top_p` of the mass left.
mx::array apply_top_p(const mx::array& logprobs, double top_p);

// Keeps tokens of at least min_p times the best one's probability, and in any
// case the `min_tokens_to_keep` best.
mx::array apply_min_p(const mx::array& logprobs,
                      double min_p,
                      int min_tokens_to_keep);

// With probability `probability`, removes all tokens above the threshold but
// the least probable of them. Draws one number from MLX's generator.
mx::array apply_xtc(const mx::array& logprobs,
                    double probability,
                    double threshold,
                    const std::vector<int>& special_tokens);

// Keeps the k most probable tokens.
mx::array apply_top_k(const mx::array& logprobs, int top_k);

}  // namespace mlxlm
