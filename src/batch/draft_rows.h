// The drafts of all rows: what networks read for several of them they read in
// one pass.
#pragma once

#include <memory>
#include <vector>

#include "batch/pass.h"
#include "batch/row.h"

namespace mlxlm {

// Of rows with nothing under way: what the next pass is to check. Returns those
// for which it failed.
std::vector<RowFailure> propose_drafts(const std::vector<Row*>& rows);

// After a pass: who drafts reads what rows have read of their prompts, and no
// more than `num_tokens` tokens. Returns those for which it failed.
std::vector<RowFailure> read_ahead(
    const std::vector<std::unique_ptr<Row>>& rows, int num_tokens);

}  // namespace mlxlm
