// Which tokens of a draft stand.
#pragma once

#include <vector>

#include <mlxlm/generate.h>

#include "generate/drafter.h"
#include "generate/sampling.h"

namespace mlxlm {

// The accepted tokens of the draft, then one that the model draws itself. They
// are distributed as if the model had drawn them one after the other, and join
// the history of `sampling`. logits [N + 1, V]: after the text and after each
// of the draft's N tokens.
//
// Where the draft has weights and the sampler's are known, by rejection:
// Leviathan et al. 2023, Fast Inference from Transformers via Speculative
// Decoding. Else the model draws as it would without a draft, of the same
// random numbers, and the draft stands as far as it is the same.
std::vector<StepResult> accept(const mx::array& logits,
                               const Draft& draft,
                               Sampling& sampling);

// The two parts of rejection sampling, for B tokens [B] drawn with log q, where
// log p is to be drawn from; both normalized, [B, V].

// Which tokens stand [B] bool: with probability min(1, p / q).
mx::array stands(const mx::array& log_p,
                 const mx::array& log_q,
                 const mx::array& tokens);

// Log-weights [B, V] to draw from in place of a token that doesn't stand:
// max(p - q, 0).
mx::array residual(const mx::array& log_p, const mx::array& log_q);

}  // namespace mlxlm
