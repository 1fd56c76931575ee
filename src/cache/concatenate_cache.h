// ConcatenateKVCache: keeps every token, without spare room.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class ConcatenateKVCache : public AttentionCache {
 public:
  std::string_view kind() const override { return "ConcatenateKVCache"; }
  int offset() const override { return content_.offset; }
  std::size_t nbytes() const override;
  bool empty() const override { return !content_.keys; }

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
    std::optional<mx::array> keys;    // [B, H, offset, D]
    std::optional<mx::array> values;  // [B, H, offset, Dv]
    int offset = 0;
  };
  Content content_;
};

CachePtr make_concatenate_cache();

}  // namespace mlxlm
