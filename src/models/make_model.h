// From a checkpoint to a model.
#pragma once

#include "load/checkpoint.h"

namespace mlxlm {

// Throws Error{config, weights, unsupported}.
ModelPtr make_model(Checkpoint checkpoint, const LoadOptions& options = {});

}  // namespace mlxlm
