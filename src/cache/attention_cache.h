// What the caches of keys and values share: a mask, an update, attention.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include <mlx/array.h>

#include <mlxlm/cache.h>

#include "cache/mask.h"
#include "cache/rows.h"
#include "kernels/seam.h"

namespace mlxlm {

kernels::AttentionParameters attention_parameters(const AttendSpec& spec,
                                                  const Mask& mask);

// Attention to what spec.expand makes of k and v.
mx::array attend_expanded(const mx::array& q,
                          const mx::array& k,
                          const mx::array& v,
                          const AttendSpec& spec,
                          const Mask& mask);

// Rows without content, plain or in this quantization. Throws Error{argument}
// for bits or a group size that MLX can't quantize to.
KeysAndValues empty_rows(const std::optional<KvQuantization>& quantization);

// The reverse: how these are stored.
std::optional<KvQuantization> quantization_of(const KeysAndValues& rows);

// Plain rows in this quantization. Throws as empty_rows() and Rows::encoded().
KeysAndValues quantized_copy(const KeysAndValues& rows,
                             const KvQuantization& quantization);

// Where new tokens' rows go that are written in place, and what they see.
struct RoomInPlace {
  KeysAndValues* rows;  // plain, and nobody else's
  int at;
  int num_keys;
  Mask mask;
};

class AttentionCache : public Cache {
 public:
  // In place where there is room_in_place().
  mx::array attend(const mx::array& q,
                   const mx::array& k,
                   const mx::array& v,
                   const AttendSpec& spec) override;

  // Counts the next `num_tokens` tokens as read, which the caller writes then:
  // keys and values like these [B, H, ., D]. None, and nothing has changed but
  // how much room there is, where they can't be written in place.
  virtual std::optional<RoomInPlace> room_in_place(const mx::array& /*k*/,
                                                   const mx::array& /*v*/,
                                                   int /*num_tokens*/,
                                                   const AttendSpec& /*spec*/) {
    return std::nullopt;
  }
  // Writes k and v there and attends.
  static mx::array attend_in_place(const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const RoomInPlace& place,
                                   const AttendSpec& spec);

  // What `num_queries` new tokens see of all that is held after they are
  // appended: the reference's make_mask.
  virtual Mask make_mask(int num_queries,
                         int window_tokens,
                         bool want_array = false) const;

  // Appends keys [B, H, L, D] and values [B, H, L, Dv]; returns all that the
  // new tokens attend to, [B, H, T, D] and [B, H, T, Dv].
  virtual KeysAndValues update(const mx::array& keys,
                               const mx::array& values) = 0;

  // Keeps float32 keys and values in float16, where it keeps them as they come.
  // Only while it is empty.
  virtual void keep_halves() = 0;

  // All that is held, rows that aren't in use included.
  virtual const KeysAndValues& rows() const = 0;
  // How many keys the next `num_tokens` tokens meet, their own included.
  virtual int num_keys_after(int num_tokens) const {
    return offset() + num_tokens;
  }

 protected:
  static mx::array attend_to(const KeysAndValues& held,
                             const mx::array& q,
                             const AttendSpec& spec,
                             const Mask& mask);
  // Whether attention can read what is held as it is.
  static bool reads_rows_as_they_are(const AttendSpec& spec) {
    return !spec.expand && !spec.visible;
  }
};

// checkpoint() and rollback() for a cache whose content is one copyable struct:
// arrays are never changed in place, so a copy of the handles is a snapshot.
template <typename Content>
struct ContentCheckpoint : CacheCheckpoint {
  explicit ContentCheckpoint(Content content) : content(std::move(content)) {}
  Content content;
};

[[noreturn]] void throw_foreign_checkpoint(std::string_view kind);

template <typename Content>
std::unique_ptr<CacheCheckpoint> make_checkpoint(const Content& content) {
  return std::make_unique<ContentCheckpoint<Content>>(content);
}

template <typename Content>
const Content& content_of(const CacheCheckpoint& checkpoint,
                          std::string_view kind) {
  auto* own = dynamic_cast<const ContentCheckpoint<Content>*>(&checkpoint);
  if (own == nullptr) {
    throw_foreign_checkpoint(kind);
  }
  return own->content;
}

}  // namespace mlxlm
