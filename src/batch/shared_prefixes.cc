#include "batch/shared_prefixes.h"

#include <algorithm>
#include <span>

#include "core/common_length.h"

namespace mlxlm {
namespace {

using Rows = std::vector<std::unique_ptr<Row>>;

bool share(const Row& a, const Row& b) {
  return a.prefixes && b.prefixes && a.prefixes->shares_with(*b.prefixes);
}

// Of `row`'s text, what it can take over once `other` has read its own: not
// the last token, and where caches can't be cut only up to a checkpoint.
int tokens_to_share(const Row& row, const Row& other) {
  std::span text(row.to_read.tokens);
  const int common =
      common_length(text.first(text.size() - 1), other.to_read.tokens);
  if (!other.prefixes->changes_later(other.layers())) return common;
  int most = 0;
  for (int position : other.options().prompt_checkpoints) {
    if (position <= common) most = std::max(most, position);
  }
  return most;
}

// The running row that has read most of what `row` begins with, and how much;
// of caches that can be cut at any place.
std::pair<Row*, int> nearest(const Row& row, const Rows& running) {
  std::pair<Row*, int> best{nullptr, 0};
  for (const auto& other : running) {
    if (!share(row, *other) ||
        other->prefixes->changes_later(other->layers())) {
      continue;
    }
    const int num_read =
        std::min(tokens_to_share(row, *other), other->num_read);
    if (num_read > best.second) best = {other.get(), num_read};
  }
  return best;
}

}  // namespace

bool waits_for_prefix(const Row& row, const Rows& running) {
  return std::ranges::any_of(running, [&](const auto& other) {
    if (!other->reading() || !share(row, *other)) return false;
    const int common = tokens_to_share(row, *other);
    return common >= kLeastShared && common > other->num_read;
  });
}

int begin_with_prefix(Row& row, const Rows& running) {
  if (!row.prefixes) return 0;
  auto& tokens = row.to_read.tokens;
  auto match = row.prefixes->find(tokens);
  const auto [other, num_read] = nearest(row, running);
  if (num_read >= match.reused_tokens + kLeastShared) {
    store_text(*other);
    match = row.prefixes->find(tokens);
  }
  if (match.reused_tokens > 0) {
    row.set_layers(match.cache);
    row.num_read = match.reused_tokens;
    row.sampling.add_history(
        std::vector<int>(tokens.begin(), tokens.begin() + row.num_read));
  }
  if (row.prefixes->changes_later(row.layers())) {
    row.request.options.prompt_checkpoints =
        row.prefixes->checkpoints(row.to_read.length);
  }
  if (!row.begun) row.answer.reuse(match.reused_tokens, match.reason);
  return match.reused_tokens;
}

void store_checkpoint(Row& row) {
  if (row.prefixes && row.reading() &&
      std::ranges::count(row.options().prompt_checkpoints, row.num_read) > 0 &&
      row.prefixes->changes_later(row.layers())) {
    store_text(row);
  }
}

void store_text(Row& row) {
  if (!row.prefixes) return;
  const auto tokens = row.read_tokens();
  if (tokens.empty() || (row.drafts && !row.drafts->level())) return;
  row.prefixes->put(tokens, row.layers());
}

}  // namespace mlxlm
