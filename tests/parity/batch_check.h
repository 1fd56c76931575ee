// Batches: each row as if it were alone.
#pragma once

#include <vector>

#include <mlxlm/model.h>

#include "tests/parity/expectation.h"

namespace mlxlm::parity {

// Reads ends of `tokens` of several lengths as rows of a batch and alone, and
// compares what is generated. Failures are EXPECTs.
void check_batch(const ModelPtr& model, const std::vector<int>& tokens);

// The rows of a batch against what the reference gives for each prompt alone.
void check_batch(const ModelPtr& model, const Expectation& expected);

}  // namespace mlxlm::parity
