// A prompt cache taken apart for the prefix store: rows that belong to a run of
// tokens, and states that belong to one position. Both are copies, evaluated,
// and never change.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <mlxlm/cache.h>

#include "cache/rows.h"

namespace mlxlm {

// Rows of successive tokens, of each cache that keeps every token.
struct PrefixRows {
  std::vector<KeysAndValues> caches;

  std::size_t nbytes() const;
  // Copies of the rows [from, to).
  PrefixRows part(int from, int to) const;
};

// The other caches (rotating, chunked, recurrent) as of one position.
struct PrefixState {
  std::vector<CachePtr> caches;

  std::size_t nbytes() const;
  // Of the newest tokens, how many can be taken back.
  int trimmable_tokens() const { return mlxlm::trimmable_tokens(caches); }
};

// Of what caches a prompt cache consists. Entries of a CacheList count each.
class PrefixLayout {
 public:
  // Throws Error{argument} if a layer has not read `num_tokens`; recurrent ones
  // don't count.
  PrefixLayout(const PromptCache& cache, int num_tokens);

  // Equal for caches whose parts go together: kinds, sizes and formats.
  const std::string& signature() const { return signature_; }
  // Whether a position needs a PrefixState.
  bool has_states() const { return num_states_ > 0; }
  // Whether there are caches that keep every token.
  bool has_rows() const { return num_states_ < caches_.size(); }
  // The kinds of caches that can't be cut, e.g. "RotatingKVCache".
  std::string kinds_of_states() const;

  // What the parts of a cache of this layout need.
  std::size_t rows_nbytes(const PromptCache& cache, int num_tokens) const;
  std::size_t state_nbytes(const PromptCache& cache) const;

  // The rows of the tokens [from, to).
  PrefixRows rows_of(const PromptCache& cache, int from, int to) const;
  PrefixState state_of(const PromptCache& cache) const;

  // The parts put together: a cache that has read `num_tokens`, with room for
  // more. `rows` hold those tokens and perhaps more; `state`, which may be null
  // if has_states() is false, is taken back by `num_trimmed`.
  PromptCache assembled(const std::vector<const PrefixRows*>& rows,
                        int num_tokens,
                        const PrefixState* state,
                        int num_trimmed) const;

 private:
  struct Part {
    std::string kind;
    bool grows = false;  // has rows
  };

  std::vector<Part> caches_;
  // Per layer: how many of caches_ it lists, or 0 for being one itself.
  std::vector<std::size_t> layers_;
  std::size_t num_states_ = 0;
  std::string signature_;
};

}  // namespace mlxlm
