// ArraysCache: the state of a recurrent layer, a fixed number of arrays.
#pragma once

#include "cache/attention_cache.h"

namespace mlxlm {

class ArraysCache : public Cache {
 public:
  // left_padding: tokens before each row's first, empty for none. Throws
  // Error{argument} unless num_arrays > 0.
  explicit ArraysCache(int num_arrays,
                       const std::vector<int>& left_padding = {});

  std::string_view kind() const override { return "ArraysCache"; }
  // A recurrent state doesn't count its tokens.
  int offset() const override { return 0; }
  std::size_t nbytes() const override;
  bool empty() const override { return !content_.arrays[0]; }
  CacheCapabilities capabilities() const override {
    return {.checkpoint_bytes = nbytes()};
  }

  std::size_t count() const { return content_.arrays.size(); }
  const std::optional<mx::array>& operator[](std::size_t index) const {
    return content_.arrays.at(index);
  }
  void set(std::size_t index, mx::array value) {
    content_.arrays.at(index) = std::move(value);
  }

  // Which of the next `num_tokens` are real, [B, num_tokens]; none: all.
  std::optional<mx::array> make_mask(int num_tokens) const;
  // The next tokens' padding and lengths start `num_tokens` later.
  void advance(int num_tokens);

  // Holds on to the arrays, nbytes() of them, whatever number of tokens they
  // stand for.
  std::unique_ptr<CacheCheckpoint> checkpoint() const override;
  void rollback(const CacheCheckpoint& checkpoint) override;
  CachePtr fork() const override {
    return std::make_shared<ArraysCache>(*this);
  }
  CacheState state() const override;
  void set_state(const CacheState& state) override;
  void append_arrays_to(std::vector<mx::array>& out) const override;

 private:
  struct Content {
    std::vector<std::optional<mx::array>> arrays;
    std::optional<mx::array> left_padding;  // [B] int32
    std::optional<mx::array> lengths;       // [B] int32
  };
  Content content_;
};

CachePtr make_arrays_cache(int num_arrays,
                           const std::vector<int>& left_padding = {});

}  // namespace mlxlm
