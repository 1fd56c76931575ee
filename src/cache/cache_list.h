// CacheList: the several caches of one layer.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class CacheList : public Cache {
 public:
  // Throws Error{argument} for an empty list or a null cache.
  explicit CacheList(std::vector<CachePtr> caches);

  std::string_view kind() const override { return "CacheList"; }
  // Of the caches that count tokens, the longest.
  int offset() const override;
  int size() const override;
  std::size_t nbytes() const override;
  bool empty() const override { return caches_.front()->empty(); }
  // What all of them can do.
  CacheCapabilities capabilities() const override;

  std::size_t count() const { return caches_.size(); }
  const CachePtr& operator[](std::size_t index) const {
    return caches_.at(index);
  }

  bool is_trimmable() const override { return is_trimmable_after(0); }
  bool is_trimmable_after(int num_tokens) const override;
  int trim(int num_tokens) override;
  // As those of the caches.
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CachePtr fork() const override;
  CachePtr to_quantized(const KvQuantization& quantization) const override;
  CacheState state() const override;
  // Replaces the caches by those of the state.
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override;

 private:
  std::vector<CachePtr> caches_;
};

CachePtr make_cache_list(std::vector<CachePtr> caches);

}  // namespace mlxlm
