// A decoder's next token as one operation, where the kernels have that and the
// decoder is plain enough.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/step.h"
#include "models/arch_spec.h"
#include "models/layer.h"

namespace mlxlm {

class DecoderStep {
 public:
  // Null where there is none for this decoder. What is passed must outlive it.
  static std::unique_ptr<DecoderStep> make(
      const ArchSpec& spec,
      const kernels::Linear& embedding,
      const std::vector<Layer>& layers,
      const std::optional<kernels::Norm>& norm,
      const kernels::Linear& head);

  // tokens [1, 1] -> logits float32 [1, 1, V]; none for other tokens, for
  // caches of other kinds, and for those that have no room for the token.
  std::optional<mx::array> run(const mx::array& tokens,
                               const PromptCache& cache);

 private:
  explicit DecoderStep(std::unique_ptr<kernels::Step> step)
      : step_(std::move(step)) {}

  std::unique_ptr<kernels::Step> step_;
};

}  // namespace mlxlm
