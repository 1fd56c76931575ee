// Several mixers that read the same input and whose answers are added up.
#pragma once

#include <memory>
#include <vector>

#include "nn/mixer.h"

namespace mlxlm::nn {

class SideBySide : public Mixer {
 public:
  explicit SideBySide(std::vector<std::shared_ptr<Mixer>> mixers)
      : mixers_(std::move(mixers)) {}

  // State: a CacheList of the mixers' caches. `residual` has no post_norm.
  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override;
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override;

 private:
  std::vector<std::shared_ptr<Mixer>> mixers_;
};

// Plain attention as one of them.
class AttentionMixer : public Mixer {
 public:
  explicit AttentionMixer(Attention attention)
      : attention_(std::move(attention)) {}

  mx::array operator()(const MixerInput& input,
                       const Residual& residual) const override {
    auto heads = attention_.attend(input.x, input.norm, input.cache);
    return finish(in_token_order(heads), attention_.o, residual);
  }
  CachePtr make_cache() const override;
  std::vector<kernels::Linear*> linears() override {
    return attention_.linears();
  }

 private:
  Attention attention_;
};

}  // namespace mlxlm::nn
