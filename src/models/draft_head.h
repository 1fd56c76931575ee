// The decoder's head for predicting several tokens.
#pragma once

#include <mlxlm/model.h>

#include "models/layer.h"

namespace mlxlm {

class Decoder;

class DecoderDraftHead : public DraftHead {
 public:
  // Takes its weights. The spec has a draft head; it and the decoder outlive
  // this.
  DecoderDraftHead(const ArchSpec& spec,
                   WeightBinder& weights,
                   Decoder& decoder);

  mx::array forward(const mx::array& tokens,
                    const mx::array& states,
                    const PromptCache& cache) override;
  mx::array logits(const mx::array& states) override;
  PromptCache make_cache(int max_kv_size) const override;
  std::size_t nbytes() const override;

  void for_each_linear(const std::function<void(kernels::Linear&)>& visit);

 private:
  const ArchSpec& spec_;
  Decoder& decoder_;
  kernels::Norm token_norm_;
  kernels::Norm state_norm_;
  kernels::Linear projection_;
  Layer layer_;
  kernels::Norm norm_;
};

}  // namespace mlxlm
