#include "cache/rows.h"

#include <sstream>
#include <string>
#include <utility>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "kernels/shapes.h"

namespace mlxlm {
namespace {

void check_same_rows(const mx::array& held, const mx::array& rows) {
  bool same = held.ndim() == 4 && rows.ndim() == 4;
  for (int axis : {0, 1, 3}) {
    same = same && held.shape(axis) == rows.shape(axis);
  }
  if (!same) {
    std::ostringstream message;
    message << "the prompt cache holds arrays of shape " << held.shape()
            << " where the model makes " << rows.shape()
            << ": it was made by another model or for another number of rows";
    throw Error(ErrorKind::argument, message.str());
  }
}

}  // namespace

std::optional<std::string> fault_of(const RowFormat& format) {
  int group_size = format.group_size;
  if (group_size != 32 && group_size != 64 && group_size != 128) {
    return "the KV cache's group size is " + std::to_string(group_size) +
           "; it can be 32, 64 or 128";
  }
  if (format.bits < 2 || format.bits == 7 || format.bits > 8) {
    return "the KV cache's number of bits is " + std::to_string(format.bits) +
           "; it can be 2, 3, 4, 5, 6 or 8";
  }
  return std::nullopt;
}

std::size_t Rows::nbytes() const {
  std::size_t sum = 0;
  for (const auto& array : arrays_) {
    sum += array.nbytes();
  }
  return sum;
}

const std::vector<mx::array>& Rows::arrays() const {
  if (written_) {
    arrays_ = mx::depends(arrays_, {*std::exchange(written_, std::nullopt)});
  }
  return arrays_;
}

kernels::QuantizedTensor Rows::quantized() const {
  return {arrays_.at(0),
          arrays_.at(1),
          arrays_.at(2),
          format_.group_size,
          format_.bits};
}

mx::array Rows::restored() const {
  if (format_.half) return mx::astype(plain(), mx::float32);
  if (!format_.quantized()) return plain();
  return mx::dequantize(arrays_.at(0),
                        arrays_.at(1),
                        arrays_.at(2),
                        format_.group_size,
                        format_.bits);
}

Rows Rows::encoded(const mx::array& rows) const {
  if (!format_.quantized()) {
    const bool half =
        rows.dtype() == mx::float32 &&
        (empty() ? format_.half : arrays_[0].dtype() == mx::float16);
    return {format_, {half ? kernels::to_half(kernels::table(), rows) : rows}};
  }
  if (rows.shape(-1) % format_.group_size != 0) {
    throw Error(ErrorKind::argument,
                "the KV cache can't be quantized in groups of " +
                    std::to_string(format_.group_size) +
                    ": the model's heads have " +
                    std::to_string(rows.shape(-1)) +
                    " numbers, which is not a multiple; choose another "
                    "kv-group-size or turn kv-bits off");
  }
  return {format_, mx::quantize(rows, format_.group_size, format_.bits)};
}

Rows Rows::slice(int from, int to) const {
  Rows part(format_);
  for (const auto& array : arrays()) {
    part.arrays_.push_back(kernels::tokens_of(array, from, to));
  }
  return part;
}

Rows Rows::followed_by(const Rows& rows) const { return joined({*this, rows}); }

Rows Rows::joined(const std::vector<Rows>& parts) {
  Rows all(parts.at(0).format_);
  for (std::size_t i = 0; i < parts[0].arrays_.size(); ++i) {
    std::vector<mx::array> arrays;
    for (const Rows& part : parts) {
      arrays.push_back(part.arrays().at(i));
    }
    all.arrays_.push_back(
        kernels::concatenate_tokens(kernels::table(), arrays));
  }
  all.claim_ = std::make_shared<bool>(true);
  return all;
}

void Rows::set(const Rows& rows, int at) {
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    arrays_[i] = kernels::with_tokens(arrays()[i], rows.arrays()[i], at);
  }
  // Where the rows are all there is, they themselves take the place.
  claim_ = rows.count() < count() ? std::make_shared<bool>(true) : nullptr;
}

Rows Rows::zeros(int count) const {
  Rows zeros(format_);
  for (const auto& array : arrays_) {
    mx::Shape shape = array.shape();
    shape[2] = count;
    zeros.arrays_.push_back(mx::zeros(shape, array.dtype()));
  }
  zeros.claim_ = std::make_shared<bool>(true);
  return zeros;
}

void Rows::reserve(const Rows& rows, int num_tokens, int used) {
  if (!empty() && used + num_tokens <= count()) {
    return;
  }
  Rows fresh = (empty() ? rows : *this)
                   .zeros((num_tokens + kCacheStepTokens - 1) /
                          kCacheStepTokens * kCacheStepTokens);
  if (empty()) {
    *this = std::move(fresh);
  } else {
    *this = (used == count() ? *this : slice(0, used)).followed_by(fresh);
  }
}

void Rows::append(const Rows& rows, int used) {
  reserve(rows, rows.count(), used);
  set(rows, used);
}

void Rows::check_fit(const Rows& rows) const {
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    check_same_rows(arrays_[i], rows.arrays_.at(i));
  }
}

void KeysAndValues::append_arrays_to(std::vector<mx::array>& out) const {
  for (const Rows* rows : {&keys, &values}) {
    out.insert(out.end(), rows->arrays().begin(), rows->arrays().end());
  }
}

}  // namespace mlxlm
