// RotatingKVCache and, with a quantization, QuantizedRotatingKVCache: keep the
// first `keep` tokens and the newest of the rest, `max_size` in all.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class RotatingKVCache : public AttentionCache {
 public:
  // Throws Error{argument} unless 0 <= keep < max_size, and for bits or a group
  // size that MLX can't quantize to.
  explicit RotatingKVCache(
      int max_size,
      int keep = 0,
      const std::optional<KvQuantization>& quantization = {});

  std::string_view kind() const override {
    return quantized() ? "QuantizedRotatingKVCache" : "RotatingKVCache";
  }
  int offset() const override { return content_.offset; }
  int size() const override;
  std::size_t nbytes() const override { return content_.rows.nbytes(); }
  bool empty() const override { return content_.rows.empty(); }
  CacheCapabilities capabilities() const override;
  int max_size() const { return content_.max_size; }
  int keep() const { return content_.keep; }
  // Where the next single token is written.
  int index() const { return content_.index; }

  Mask make_mask(int num_queries,
                 int window_tokens,
                 bool want_array = false) const override;
  // For one token where the rows are this cache's alone, and for several where
  // speculation may take them back.
  std::optional<RoomInPlace> room_in_place(const mx::array& k,
                                           const mx::array& v,
                                           int num_tokens,
                                           const AttendSpec& spec) override;
  mx::array attend_again(const mx::array& q, const AttendSpec& spec) override;
  // One token overwrites the oldest; several put the cache in order first.
  KeysAndValues update(const mx::array& keys, const mx::array& values) override;
  void keep_halves() override { content_.rows.keep_halves(); }
  const KeysAndValues& rows() const override { return content_.rows; }
  int num_keys_after(int num_tokens) const override;
  KeysAndValues keys_and_values() const;
  // Whether several tokens read at once see what they would see one by one.
  // With kept first tokens a chunk of the prompt shows less than that, as the
  // reference's.
  void see_stepwise(bool on) { stepwise_ = on; }

  // Only until the first token is overwritten.
  bool is_trimmable() const override { return is_trimmable_after(0); }
  bool is_trimmable_after(int num_tokens) const override {
    return num_tokens < content_.max_size - content_.offset;
  }
  int trim(int num_tokens) override;
  // Holds on to the buffers, nbytes() of them: the next token is written into
  // a copy.
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CachePtr fork() const override {
    return std::make_shared<RotatingKVCache>(*this);
  }
  CachePtr to_quantized(const KvQuantization& quantization) const override;
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override {
    content_.rows.append_arrays_to(out);
  }

 private:
  struct Content {
    // [B, H, T, D]; T <= max_size after one token, more after several
    KeysAndValues rows;
    int offset = 0;
    int keep = 0;
    int max_size = 0;
    int index = 0;
  };

  bool quantized() const { return content_.rows.keys.format().quantized(); }
  Mask mask_from(int offset,
                 int place,
                 int num_queries,
                 int window_tokens,
                 bool want_array = false) const;
  Mask stepwise_mask(int offset, int num_queries, int window_tokens) const;
  int num_rows() const;
  KeysAndValues in_order(int num_dropped, const KeysAndValues& more) const;
  void grow(const KeysAndValues& rows);
  void append_several(const KeysAndValues& rows);
  void make_place(const KeysAndValues& row);
  void append_one(const KeysAndValues& row);

  Content content_;
  bool stepwise_ = false;
};

// see_stepwise() of every rotating cache in a layer's.
void see_stepwise(Cache& cache, bool on);

CachePtr make_rotating_cache(
    int max_size,
    int keep = 0,
    const std::optional<KvQuantization>& quantization = {});

}  // namespace mlxlm
