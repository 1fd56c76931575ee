// The model that goes on from accepted cache files.
#pragma once

#include "generate/toy.h"

namespace mlxlm {

// A growing layer and one with a sliding window.
inline const ModelPtr& fuzz_model() {
  static const ModelPtr kModel =
      std::make_shared<ToyModel>(ToyOptions{.window_tokens = 4});
  return kModel;
}

}  // namespace mlxlm
