// One pass of the model over rows that decode and prompts that are read.
//
// Invariant: after run(), every row's cache has the pass's tokens (not yet
// computed), and every row that read its last token has `drawn`, or of a draft
// `logits`.
#pragma once

#include <memory>
#include <vector>

#include "batch/row.h"

namespace mlxlm {

// Part of a pass: a row's next tokens.
struct PassPart {
  Row* row;
  int num_tokens;
  bool of_prompt;
  std::optional<mx::array> logits = std::nullopt;

  int num_drafts() const {
    return of_prompt || row->drawn || !row->drafts ? 0
                                                   : row->drafts->num_drafts();
  }
};

// What to read next: a token of each row that decodes and its draft, and up to
// `prompt_tokens` of the prompts, shared out evenly; or one chunk that is
// longer and can't be cut.
std::vector<PassPart> plan_pass(const std::vector<std::unique_ptr<Row>>& rows,
                                int prompt_tokens);

// What to tell of a row that failed.
struct RowFailure {
  Row* row;
  std::string message;
};

// Dispatches the pass; of rows with a draft `logits` [N + 1, V] are what checks
// it. Returns the rows whose processors or sampler threw; they
// have no `drawn` then.
std::vector<RowFailure> run_pass(Model& model, std::vector<PassPart>& parts);

}  // namespace mlxlm
