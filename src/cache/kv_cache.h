// KVCache: keeps every token; grows in steps of 256.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class KVCache : public AttentionCache {
 public:
  std::string_view kind() const override { return "KVCache"; }
  int offset() const override { return content_.offset; }
  std::size_t nbytes() const override;
  bool empty() const override { return !content_.keys; }

  std::pair<mx::array, mx::array> update(const mx::array& keys,
                                         const mx::array& values) override;
  // The part in use, [B, H, offset, D] each; only if not empty().
  std::pair<mx::array, mx::array> keys_and_values() const;

  bool is_trimmable() const override { return true; }
  int trim(int num_tokens) override;
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  std::shared_ptr<Cache> to_quantized(int group_size, int bits) const override;
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override;

 private:
  struct Content {
    std::optional<mx::array> keys;    // [B, H, T, D], `offset` of T in use
    std::optional<mx::array> values;  // [B, H, T, Dv]
    int offset = 0;
  };
  Content content_;
};

CachePtr make_kv_cache();

}  // namespace mlxlm
