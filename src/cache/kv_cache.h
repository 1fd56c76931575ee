// KVCache and, with a quantization, QuantizedKVCache: keep every token, grow in
// steps of 256.
#pragma once

#include "cache/attention_cache.h"
#include "cache/growth_marks.h"

namespace mlxlm {

class KVCache : public AttentionCache {
 public:
  // Throws Error{argument} for bits or a group size that MLX can't quantize to.
  explicit KVCache(const std::optional<KvQuantization>& quantization = {})
      : rows_(empty_rows(quantization)) {}
  // Rows of which `offset` tokens are in use.
  KVCache(KeysAndValues rows, int offset)
      : rows_(std::move(rows)), offset_(offset) {}

  std::string_view kind() const override {
    return rows_.keys.format().quantized() ? "QuantizedKVCache" : "KVCache";
  }
  int offset() const override { return offset_; }
  std::size_t nbytes() const override { return rows_.nbytes(); }
  bool empty() const override { return rows_.empty(); }
  CacheCapabilities capabilities() const override;

  // Where the rows are this cache's alone.
  std::optional<RoomInPlace> room_in_place(const mx::array& k,
                                           const mx::array& v,
                                           int num_tokens,
                                           const AttendSpec& spec) override;
  mx::array attend_again(const mx::array& q, const AttendSpec& spec) override;
  KeysAndValues update(const mx::array& keys, const mx::array& values) override;
  void keep_halves() override { rows_.keep_halves(); }
  const KeysAndValues& rows() const override { return rows_; }
  // The part in use; only if not empty().
  KeysAndValues keys_and_values() const { return rows_.slice(0, offset_); }

  // Whether one more token's key and value may be written to the rows'
  // buffers, at offset(), which this makes room for; and that who does so will
  // have done when `written` is computed.
  bool make_room_in_place();
  void took_in_place(const mx::array& written);

  bool is_trimmable() const override { return true; }
  int trim(int num_tokens) override;
  // Free while the rows before it stay; holds on to the buffers, nbytes() of
  // them, once trim(), set_state() or another rollback gives some up.
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CachePtr fork() const override { return std::make_shared<KVCache>(*this); }
  CachePtr to_quantized(const KvQuantization& quantization) const override;
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override {
    rows_.append_arrays_to(out);
  }

 private:
  KeysAndValues rows_;  // [B, H, T, D], `offset_` of T in use
  int offset_ = 0;
  mutable GrowthMarks marks_;
};

CachePtr make_kv_cache();
CachePtr make_quantized_cache(const KvQuantization& quantization = {});

}  // namespace mlxlm
