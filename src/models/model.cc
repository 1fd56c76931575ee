#include <mlxlm/model.h>

#include "cache/batch_cache.h"

namespace mlxlm {

mx::array Model::forward_at(const std::vector<int>& positions,
                            const mx::array& tokens,
                            const PromptCache& cache,
                            const std::optional<mx::array>& input_embeddings) {
  return take_positions(forward(tokens, cache, input_embeddings), positions);
}

ModelPass Model::forward_with_states(const mx::array&,
                                     const PromptCache&,
                                     const std::vector<int>&,
                                     const std::optional<mx::array>&) {
  throw Error(ErrorKind::unsupported,
              "a model of type " + model_type() + " gives out no states");
}

}  // namespace mlxlm
