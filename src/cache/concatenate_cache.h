// ConcatenateKVCache: keeps every token, without spare room.
#pragma once

#include "cache/attention_cache.h"
#include "cache/growth_marks.h"
#include "cache/state_reader.h"

namespace mlxlm {

class ConcatenateKVCache : public AttentionCache {
 public:
  std::string_view kind() const override { return "ConcatenateKVCache"; }
  int offset() const override { return rows_.count(); }
  std::size_t nbytes() const override { return rows_.nbytes(); }
  bool empty() const override { return rows_.empty(); }
  CacheCapabilities capabilities() const override;

  KeysAndValues update(const mx::array& keys, const mx::array& values) override;
  void keep_halves() override { rows_.keep_halves(); }
  const KeysAndValues& rows() const override { return rows_; }

  bool is_trimmable() const override { return true; }
  int trim(int num_tokens) override;
  // As KVCache's.
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CachePtr fork() const override {
    return std::make_shared<ConcatenateKVCache>(*this);
  }
  // A QuantizedKVCache.
  CachePtr to_quantized(const KvQuantization& quantization) const override;
  CacheState state() const override { return state_with(rows_, {}); }
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override {
    rows_.append_arrays_to(out);
  }

 private:
  void cut_to(int offset);

  KeysAndValues rows_;  // [B, H, T, D], all in use
  mutable GrowthMarks marks_;
};

CachePtr make_concatenate_cache();

}  // namespace mlxlm
