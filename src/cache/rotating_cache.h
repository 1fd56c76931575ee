// RotatingKVCache: keeps the first `keep` tokens and the newest of the rest,
// `max_size` in all.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class RotatingKVCache : public AttentionCache {
 public:
  // Throws Error{argument} unless 0 <= keep < max_size.
  explicit RotatingKVCache(int max_size, int keep = 0);

  std::string_view kind() const override { return "RotatingKVCache"; }
  int offset() const override { return content_.offset; }
  int size() const override;
  std::size_t nbytes() const override;
  bool empty() const override { return !content_.keys; }
  int max_size() const { return content_.max_size; }
  int keep() const { return content_.keep; }
  // Where the next single token is written.
  int index() const { return content_.index; }

  Mask make_mask(int num_queries,
                 int window_tokens,
                 bool want_array = false) const override;
  // One token overwrites the oldest; several put the cache in order first.
  std::pair<mx::array, mx::array> update(const mx::array& keys,
                                         const mx::array& values) override;
  std::pair<mx::array, mx::array> keys_and_values() const;

  // Only until the first token is overwritten.
  bool is_trimmable() const override { return is_trimmable_after(0); }
  bool is_trimmable_after(int num_tokens) const override {
    return num_tokens < content_.max_size - content_.offset;
  }
  int trim(int num_tokens) override;
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  // Throws Error{unsupported}, as the reference.
  std::shared_ptr<Cache> to_quantized(int group_size, int bits) const override;
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override;

 private:
  struct Content {
    std::optional<mx::array> keys;    // [B, H, T, D]; T <= max_size after one
    std::optional<mx::array> values;  // token, more after several
    int offset = 0;
    int keep = 0;
    int max_size = 0;
    int index = 0;
  };

  mx::array in_order(const mx::array& held) const;
  mx::array without_oldest(const mx::array& held, int num_rows) const;
  void grow(const mx::array& keys, const mx::array& values);
  void append_several(const mx::array& keys, const mx::array& values);
  void append_one(const mx::array& key, const mx::array& value);

  Content content_;
};

CachePtr make_rotating_cache(int max_size, int keep = 0);

}  // namespace mlxlm
