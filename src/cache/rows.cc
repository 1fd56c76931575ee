#include "cache/rows.h"

#include <sstream>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {

mx::array rows_of(const mx::array& array, int from, int to) {
  mx::Shape start(4, 0);
  mx::Shape stop = array.shape();
  start[2] = from;
  stop[2] = to;
  return mx::slice(array, std::move(start), std::move(stop));
}

mx::array with_rows(const mx::array& array, const mx::array& rows, int at) {
  mx::Shape start(4, 0);
  mx::Shape stop = array.shape();
  start[2] = at;
  stop[2] = at + rows.shape(2);
  return mx::slice_update(array, rows, std::move(start), std::move(stop));
}

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

void append_rows(std::optional<mx::array>& buffer,
                 const mx::array& rows,
                 int used) {
  if (buffer) {
    check_same_rows(*buffer, rows);
  }
  int num_rows = rows.shape(2);
  if (!buffer || used + num_rows > buffer->shape(2)) {
    mx::Shape shape = rows.shape();
    shape[2] =
        (num_rows + kCacheStepTokens - 1) / kCacheStepTokens * kCacheStepTokens;
    auto fresh = mx::zeros(shape, rows.dtype());
    if (!buffer) {
      buffer = fresh;
    } else {
      auto held =
          used % kCacheStepTokens == 0 ? *buffer : rows_of(*buffer, 0, used);
      buffer = mx::concatenate({held, fresh}, 2);
    }
  }
  buffer = with_rows(*buffer, rows, used);
}

std::size_t nbytes_of(const std::optional<mx::array>& array) {
  return array ? array->nbytes() : 0;
}

}  // namespace mlxlm
