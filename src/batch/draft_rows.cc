#include "batch/draft_rows.h"

namespace mlxlm {
namespace {

std::string message_of(const std::exception_ptr& fault) {
  try {
    std::rethrow_exception(fault);
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an unknown fault";
  }
}

}  // namespace

std::vector<RowFailure> propose_drafts(const std::vector<Row*>& rows) {
  std::vector<Row*> drafting;
  std::vector<DraftJob> jobs;
  for (Row* row : rows) {
    const int count = row->drafts->num_wanted(row->tokens_left());
    if (count > 0) {
      drafting.push_back(row);
      jobs.push_back({&row->drafts->drafter(), count, &row->sampling});
    } else {
      row->drafts->set_draft(std::nullopt);
    }
  }
  std::vector<RowFailure> failures;
  auto proposals = propose_all(jobs);
  for (std::size_t i = 0; i < drafting.size(); ++i) {
    if (proposals[i].fault) {
      failures.push_back({drafting[i], message_of(proposals[i].fault)});
    } else {
      drafting[i]->drafts->set_draft(std::move(proposals[i].draft));
    }
  }
  return failures;
}

std::vector<RowFailure> read_ahead(
    const std::vector<std::unique_ptr<Row>>& rows, int num_tokens) {
  std::vector<RowFailure> failures;
  for (const auto& row : rows) {
    if (!row->drafts || num_tokens <= 0) continue;
    try {
      num_tokens -= row->drafts->read_ahead(num_tokens);
    } catch (const std::exception& error) {
      failures.push_back({row.get(), error.what()});
    }
  }
  return failures;
}

}  // namespace mlxlm
