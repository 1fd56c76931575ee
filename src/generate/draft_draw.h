// The tokens of a draft, drawn one after the other with the model's sampler and
// processors.
#pragma once

#include <vector>

#include "generate/drafter.h"
#include "generate/sampling.h"

namespace mlxlm {

class DraftDraw {
 public:
  // After the history of the model's `sampling`.
  explicit DraftDraw(const Sampling& sampling)
      : sampling_(sampling.for_drafts()) {}

  // logits [1, V] -> a token, [1] int32, which is dispatched.
  const mx::array& draw(const mx::array& logits);

  int count() const { return static_cast<int>(tokens_.size()); }
  Draft draft() const;

 private:
  Sampling sampling_;
  std::vector<mx::array> tokens_;
  std::vector<mx::array> weights_;
};

}  // namespace mlxlm
