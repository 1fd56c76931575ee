// QuantizedKVCache: keeps every token in MLX's affine quantization.
#pragma once

#include <array>

#include "cache/attention_cache.h"

namespace mlxlm {

// Data, scales and zeros: [B, H, T, D * bits / 32], [B, H, T, D / group_size].
using QuantizedRows = std::array<std::optional<mx::array>, 3>;

class QuantizedKVCache : public Cache {
 public:
  // Throws Error{argument} for a group size or a number of bits that MLX can't
  // quantize to.
  QuantizedKVCache(int group_size, int bits);

  // A quantized copy of keys and values of which `offset` tokens are in use.
  static std::shared_ptr<QuantizedKVCache> from(
      const std::optional<mx::array>& keys,
      const std::optional<mx::array>& values,
      int offset,
      int group_size,
      int bits);

  std::string_view kind() const override { return "QuantizedKVCache"; }
  int offset() const override { return content_.offset; }
  std::size_t nbytes() const override;
  bool empty() const override { return !content_.keys[0]; }
  int group_size() const { return content_.group_size; }
  int bits() const { return content_.bits; }

  mx::array attend(const mx::array& q,
                   const mx::array& k,
                   const mx::array& v,
                   const AttendSpec& spec) override;
  Mask make_mask(int num_queries,
                 int window_tokens,
                 bool want_array = false) const;
  // Appends keys [B, H, L, D] and values [B, H, L, Dv]; returns all that is
  // held.
  std::pair<kernels::QuantizedTensor, kernels::QuantizedTensor> update(
      const mx::array& keys, const mx::array& values);
  std::pair<kernels::QuantizedTensor, kernels::QuantizedTensor>
  keys_and_values() const;

  bool is_trimmable() const override { return true; }
  int trim(int num_tokens) override;
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override;

 private:
  struct Content {
    QuantizedRows keys;
    QuantizedRows values;
    int offset = 0;
    int group_size = 64;
    int bits = 8;
  };
  Content content_;
};

CachePtr make_quantized_cache(int group_size = 64, int bits = 8);

}  // namespace mlxlm
