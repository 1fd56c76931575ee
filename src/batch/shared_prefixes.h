// Rows that begin alike and have the same prefix store read what is common
// once, also while one of them is still reading it.
//
// Invariant: no row reads what it has in common with another that is still
// reading that, where it is kLeastShared tokens or more; it waits.
#pragma once

#include <memory>
#include <vector>

#include "batch/row.h"

namespace mlxlm {

// Fewer tokens are read sooner than they are found and copied.
inline constexpr int kLeastShared = 16;

bool waits_for_prefix(const Row& row,
                      const std::vector<std::unique_ptr<Row>>& running);

// A row that starts takes what its store or one of the running rows has read of
// its text. Returns the number of tokens.
int begin_with_prefix(Row& row,
                      const std::vector<std::unique_ptr<Row>>& running);

// Of a prompt, after a pass: states that later ones won't do for.
void store_checkpoint(Row& row);

// All that the row has read, between passes.
void store_text(Row& row);

}  // namespace mlxlm
