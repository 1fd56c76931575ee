// One rank's part of a decoder's weights.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "models/layer.h"
#include "models/weight_preparation.h"
#include "nn/sharding.h"

namespace mlxlm {

class WeightSharding {
 public:
  explicit WeightSharding(const nn::Share& share) : share_(share) {}

  // Leaves the layer's attention the rank's heads, and its MLP or experts some
  // of the hidden numbers. Those that aren't sums of such parts stay whole, as
  // do other mixers. Throws Error{unsupported} for sizes that can't be split.
  // Nothing is computed.
  void operator()(Layer& layer);
  // Leaves the rank its part of the vocabulary, if that can be split; whether
  // it could.
  bool split_head(kernels::Linear& head);

  // Puts the parts in place of the parameters that they are of. Returns the
  // parameters (mx::array::id()) that would have to be put together of parts.
  std::unordered_set<std::uintptr_t> replace(std::vector<Parameter>& parameters,
                                             std::vector<SplitTensor>& splits);

 private:
  void split(nn::Attention& attention);
  bool split(nn::Mlp& mlp);
  void split(nn::Experts& experts);
  void keep_outputs(kernels::Linear& linear);
  void keep_inputs(kernels::Linear& linear, const std::string& what);
  void note(const kernels::Linear& whole, const kernels::Linear& part);

  nn::Share share_;
  std::unordered_map<std::uintptr_t, mx::array> parts_;  // by the whole's id()
};

}  // namespace mlxlm
