// Rows of a cache: keys or values [B, H, T, D] of a layer, where T is time.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <mlx/array.h>

#include "kernels/seam.h"

namespace mlxlm {

namespace mx = mlx::core;

// Growing buffers have multiples of this many rows (the reference's have 256
// more than were in use), so that a head's rows are whole pages of a file.
inline constexpr int kCacheStepTokens = 256;

// How rows are stored: as they come, in float16, or in MLX's affine
// quantization.
struct RowFormat {
  int bits = 0;  // 0: as they come, or halves
  int group_size = 0;
  bool half = false;  // not quantized, float32 rows in float16

  bool quantized() const { return bits > 0; }
};

// What is wrong with this format, if anything.
std::optional<std::string> fault_of(const RowFormat& format);

// Rows that are held already keep their dtype, and later ones take it.
//
// A value: copies share their arrays, and no array is changed in place while
// another holds it. One that has its arrays for itself knows it: claim_ is made
// with them and copied along. Arrays that were changed behind MLX's back are
// given out as what depends on the change.
class Rows {
 public:
  Rows() = default;
  explicit Rows(RowFormat format) : format_(format) {}
  // Arrays in this format: [rows], or [data, scales, zeros].
  Rows(RowFormat format, std::vector<mx::array> arrays)
      : format_(format), arrays_(std::move(arrays)) {}

  const RowFormat& format() const { return format_; }
  bool empty() const { return arrays_.empty(); }
  // T, those not in use included.
  int count() const { return empty() ? 0 : arrays_[0].shape(2); }
  std::size_t nbytes() const;
  // B, H and D; only if not empty.
  int batch_size() const { return arrays_.at(0).shape(0); }
  int num_heads() const { return arrays_.at(0).shape(1); }
  int head_size() const {
    return format_.quantized() ? arrays_[1].shape(3) * format_.group_size
                               : arrays_[0].shape(3);
  }

  // One array, or three if quantized; none if empty.
  const std::vector<mx::array>& arrays() const;
  const mx::array& plain() const { return arrays().at(0); }
  kernels::QuantizedTensor quantized() const;

  // Float32 rows that come are kept in float16 from now on; only if empty.
  void keep_halves() { format_.half = !format_.quantized(); }

  // What they stand for, [B, H, T, D]; only if not empty.
  mx::array restored() const;

  // `rows` [B, H, L, D] in this format. Throws Error{argument} if D is not a
  // multiple of the group size.
  Rows encoded(const mx::array& rows) const;

  // [:, :, from:to]
  Rows slice(int from, int to) const;
  Rows followed_by(const Rows& rows) const;
  // All of these, one after the other; at least one, and none of them empty.
  static Rows joined(const std::vector<Rows>& parts);
  // The rows in memory of their own.
  Rows copied() const { return followed_by(slice(0, 0)); }
  // [:, :, at:at + rows.count()] = rows
  void set(const Rows& rows, int at);
  // `count` rows of zeros, the other axes as here.
  Rows zeros(int count) const;

  // Writes `rows` after the first `used`, growing first where that is needed.
  void append(const Rows& rows, int used);
  // Makes room for `num_tokens` rows like `rows` after the first `used`.
  void reserve(const Rows& rows, int num_tokens, int used);

  // Whether nobody else has the arrays, so that they may be changed in place.
  bool sole() const { return claim_.use_count() == 1 && *claim_; }
  // Somebody is given the arrays themselves: those of the copies, too.
  void share() const {
    if (claim_) {
      *claim_ = false;
    }
  }
  // Nobody else has them, or will look at them.
  void claim() const { claim_ = std::make_shared<bool>(true); }
  // What became of the array of plain rows that were changed in place.
  void changed_to(mx::array plain) { arrays_.at(0) = std::move(plain); }

  // For who writes to the array itself: it is as it should be once `written()`
  // is computed, if there is one.
  const mx::array& buffer() const { return arrays_.at(0); }
  const std::optional<mx::array>& written() const { return written_; }
  // The buffer has changed when this is computed.
  void written_by(mx::array written) { written_ = std::move(written); }

  // Throws Error{argument} unless `rows` can stand behind these in time.
  void check_fit(const Rows& rows) const;

 private:
  RowFormat format_;
  mutable std::vector<mx::array> arrays_;
  mutable std::optional<mx::array> written_;  // not yet in the arrays' graph
  mutable std::shared_ptr<bool> claim_;
};

// Both of a layer, always changed together: nothing has changed if one fails.
struct KeysAndValues {
  Rows keys;
  Rows values;

  bool empty() const { return keys.empty(); }
  int count() const { return keys.count(); }
  std::size_t nbytes() const { return keys.nbytes() + values.nbytes(); }

  KeysAndValues encoded(const mx::array& k, const mx::array& v) const {
    return {keys.encoded(k), values.encoded(v)};
  }
  // For where only their shapes matter, and what is encoded would be too much.
  KeysAndValues shaped_as(const mx::array& k, const mx::array& v) const {
    return empty() ? encoded(k, v)
                   : KeysAndValues{Rows(keys.format(), {k}),
                                   Rows(values.format(), {v})};
  }
  void keep_halves() {
    keys.keep_halves();
    values.keep_halves();
  }
  KeysAndValues slice(int from, int to) const {
    return {keys.slice(from, to), values.slice(from, to)};
  }
  KeysAndValues followed_by(const KeysAndValues& rows) const {
    return {keys.followed_by(rows.keys), values.followed_by(rows.values)};
  }
  KeysAndValues copied() const { return {keys.copied(), values.copied()}; }
  KeysAndValues zeros(int num_rows) const {
    return {keys.zeros(num_rows), values.zeros(num_rows)};
  }
  void set(const KeysAndValues& rows, int at) {
    keys.set(rows.keys, at);
    values.set(rows.values, at);
  }
  void append(const KeysAndValues& rows, int used) {
    check_fit(rows);
    keys.append(rows.keys, used);
    values.append(rows.values, used);
  }
  void reserve(const KeysAndValues& rows, int num_tokens, int used) {
    check_fit(rows);
    keys.reserve(rows.keys, num_tokens, used);
    values.reserve(rows.values, num_tokens, used);
  }
  bool sole() const { return keys.sole() && values.sole(); }
  void share() const {
    keys.share();
    values.share();
  }
  void claim() const {
    keys.claim();
    values.claim();
  }
  void check_fit(const KeysAndValues& rows) const {
    keys.check_fit(rows.keys);
    values.check_fit(rows.values);
  }
  void append_arrays_to(std::vector<mx::array>& out) const;
};

}  // namespace mlxlm
