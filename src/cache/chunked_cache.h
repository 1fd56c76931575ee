// ChunkedKVCache: attention within chunks of a fixed number of tokens; what
// lies more than a chunk back is dropped.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class ChunkedKVCache : public AttentionCache {
 public:
  // Throws Error{argument} unless chunk_size > 0.
  explicit ChunkedKVCache(int chunk_size);

  std::string_view kind() const override { return "ChunkedKVCache"; }
  int offset() const override { return content_.offset; }
  int size() const override { return content_.offset - content_.start; }
  std::size_t nbytes() const override;
  bool empty() const override { return !content_.keys; }
  int chunk_size() const { return content_.chunk_size; }
  // Position of the first token held.
  int start_position() const { return content_.start; }

  // Drops what is more than a chunk back.
  void trim_front();
  // trim_front(), then attention within chunks.
  mx::array attend(const mx::array& q,
                   const mx::array& k,
                   const mx::array& v,
                   const AttendSpec& spec) override;
  Mask make_mask(int num_queries,
                 int window_tokens,
                 bool want_array = false) const override;
  std::pair<mx::array, mx::array> update(const mx::array& keys,
                                         const mx::array& values) override;

  bool is_trimmable() const override { return true; }
  int trim(int num_tokens) override;
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override;

 private:
  struct Content {
    std::optional<mx::array> keys;    // [B, H, T, D], the first `offset -
    std::optional<mx::array> values;  // start` of T in use
    int offset = 0;
    int chunk_size = 0;
    int start = 0;
  };
  Content content_;
};

CachePtr make_chunked_cache(int chunk_size);

}  // namespace mlxlm
