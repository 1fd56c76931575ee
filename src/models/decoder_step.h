// A decoder's next token, of each row of a batch, as one operation, where the
// kernels have that and the decoder is plain enough.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/step.h"
#include "models/arch_spec.h"
#include "models/layer.h"

namespace mlxlm {

class KVCache;

class DecoderStep {
 public:
  // Null where there is none for this decoder. What is passed must outlive it.
  // `partial_head`: the head has this rank's part of the vocabulary.
  static std::unique_ptr<DecoderStep> make(
      const ArchSpec& spec,
      const kernels::Linear& embedding,
      const std::vector<Layer>& layers,
      const std::optional<kernels::Norm>& norm,
      const kernels::Linear& head,
      bool partial_head);

  // A token of each row: tokens [1, N] -> logits float32 [1, N, V]; none for
  // several tokens of a row, for more rows than the step takes, for caches of
  // other kinds, and for those that are shared.
  std::optional<mx::array> run(const mx::array& tokens,
                               const PromptCache& cache);

 private:
  DecoderStep(const kernels::StepSpec& spec,
              std::unique_ptr<kernels::Step> step);
  std::optional<kernels::StepRow> place_of(const std::vector<KVCache*>& row,
                                           std::vector<mx::array>& after) const;

  std::unique_ptr<kernels::Step> step_;
  std::size_t num_layers_;
  int num_kv_heads_;
  int key_size_;
  int value_size_;
};

}  // namespace mlxlm
