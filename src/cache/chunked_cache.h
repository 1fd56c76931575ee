// ChunkedKVCache and, with a quantization, QuantizedChunkedKVCache: attention
// within chunks of a fixed number of tokens; what lies more than a chunk back
// is dropped.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class ChunkedKVCache : public AttentionCache {
 public:
  // Throws Error{argument} unless chunk_size > 0, and for bits or a group size
  // that MLX can't quantize to.
  explicit ChunkedKVCache(
      int chunk_size, const std::optional<KvQuantization>& quantization = {});

  std::string_view kind() const override {
    return quantized() ? "QuantizedChunkedKVCache" : "ChunkedKVCache";
  }
  int offset() const override { return content_.offset; }
  int size() const override { return content_.offset - content_.start; }
  std::size_t nbytes() const override { return content_.rows.nbytes(); }
  bool empty() const override { return content_.rows.empty(); }
  CacheCapabilities capabilities() const override;
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
  KeysAndValues update(const mx::array& keys, const mx::array& values) override;
  void keep_halves() override { content_.rows.keep_halves(); }
  const KeysAndValues& rows() const override { return content_.rows; }
  KeysAndValues keys_and_values() const {
    return content_.rows.slice(0, size());
  }

  // As far as the chunk of the token that comes next is still there.
  bool is_trimmable() const override { return true; }
  bool is_trimmable_after(int num_tokens) const override;
  int trim(int num_tokens) override;
  // Holds on to the buffers, nbytes() of them: the next tokens are written into
  // a copy.
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CachePtr fork() const override {
    return std::make_shared<ChunkedKVCache>(*this);
  }
  CachePtr to_quantized(const KvQuantization& quantization) const override;
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override {
    content_.rows.append_arrays_to(out);
  }

 private:
  struct Content {
    KeysAndValues rows;  // [B, H, T, D], the first `offset - start` of T in use
    int offset = 0;
    int chunk_size = 0;
    int start = 0;
  };
  bool quantized() const { return content_.rows.keys.format().quantized(); }
  Content content_;
};

CachePtr make_chunked_cache(
    int chunk_size, const std::optional<KvQuantization>& quantization = {});

}  // namespace mlxlm
