// The caches of one layer for several rows that are read side by side.
#pragma once

#include <vector>

#include "cache/cache_list.h"
#include "kernels/seam.h"

namespace mlxlm {

// Rows keep their own caches, of any kinds and lengths. A pass has the tokens
// of all rows one after the other, as one row of L tokens: num_tokens[0] of row
// 0, then num_tokens[1] of row 1, ... What a pass does token by token needs no
// care, then; attention and recurrent steps are each row's own. Made for one
// pass: joining copies nothing, and leaves nothing to undo.
class BatchCache : public CacheList {
 public:
  // num_tokens: how many of the next pass's tokens are each row's.
  BatchCache(std::vector<CachePtr> rows, std::vector<int> num_tokens);

  std::string_view kind() const override { return "BatchCache"; }
  CachePtr fork() const override;
  const std::vector<int>& num_tokens() const { return num_tokens_; }

  // q [1, H, L, D], k [1, Hkv, L, D], v [1, Hkv, L, Dv] -> [1, H, L, Dv].
  mx::array attend(const mx::array& q,
                   const mx::array& k,
                   const mx::array& v,
                   const AttendSpec& spec) override;
  mx::array attend_again(const mx::array& q, const AttendSpec& spec) override;

 private:
  std::optional<mx::array> attend_together(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const AttendSpec& spec,
      const std::vector<std::optional<RoomInPlace>>& places);

  std::vector<int> num_tokens_;
};

// Where the `num_tokens` next tokens stand for this cache, which may be null
// (from 0 on) or a batch's.
std::vector<kernels::TokenRun> token_runs(const Cache* cache, int num_tokens);

// A pass over rows: the layers of all, row by row the same number. `num_tokens`
// as BatchCache's.
PromptCache join_rows(const std::vector<const PromptCache*>& rows,
                      const std::vector<int>& num_tokens);

// f(x, cache) for what isn't done token by token, row by row where the cache is
// a batch's: x [1, L, ...] -> [1, L, ...].
template <class F>
mx::array each_row(const mx::array& x, Cache* cache, F&& f);

// x [1, L, ...] in parts of the rows' tokens along `axis`, and back.
std::vector<mx::array> split_tokens(const mx::array& x,
                                    const std::vector<int>& num_tokens,
                                    int axis);
mx::array join_tokens(std::vector<mx::array> parts, int axis);

// x [1, L, D] -> [1, N, D].
mx::array take_positions(const mx::array& x, const std::vector<int>& positions);

template <class F>
mx::array each_row(const mx::array& x, Cache* cache, F&& f) {
  auto* batch = dynamic_cast<BatchCache*>(cache);
  if (batch == nullptr) return f(x, cache);
  auto parts = split_tokens(x, batch->num_tokens(), 1);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    parts[i] = f(parts[i], (*batch)[i].get());
  }
  return join_tokens(std::move(parts), 1);
}

}  // namespace mlxlm
