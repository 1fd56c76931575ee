#include "cache/arrays_cache.h"

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/state_reader.h"

namespace mlxlm {

ArraysCache::ArraysCache(int num_arrays, const std::vector<int>& left_padding) {
  if (num_arrays <= 0) {
    throw Error(ErrorKind::argument,
                "an arrays cache needs at least one array, not " +
                    std::to_string(num_arrays));
  }
  content_.arrays.resize(static_cast<std::size_t>(num_arrays));
  if (!left_padding.empty()) {
    content_.left_padding = mx::array(left_padding.data(),
                                      {static_cast<int>(left_padding.size())},
                                      mx::int32);
  }
}

std::size_t ArraysCache::nbytes() const {
  std::size_t sum = 0;
  for (const auto& array : content_.arrays) {
    sum += array ? array->nbytes() : 0;
  }
  return sum;
}

std::optional<mx::array> ArraysCache::make_mask(int num_tokens) const {
  auto position = mx::arange(num_tokens);
  std::optional<mx::array> mask;
  if (content_.left_padding) {
    mask =
        mx::greater_equal(position, mx::expand_dims(*content_.left_padding, 1));
  }
  if (content_.lengths) {
    auto inside = mx::less(position, mx::expand_dims(*content_.lengths, 1));
    mask = mask ? mx::logical_and(*mask, inside) : inside;
  }
  return mask;
}

void ArraysCache::advance(int num_tokens) {
  for (auto* counts : {&content_.left_padding, &content_.lengths}) {
    if (*counts) {
      *counts = mx::subtract(**counts, mx::array(num_tokens));
    }
  }
}

std::unique_ptr<CacheCheckpoint> ArraysCache::checkpoint() const {
  return make_checkpoint(content_);
}

void ArraysCache::rollback(const CacheCheckpoint& checkpoint) {
  content_ = content_of<Content>(checkpoint, kind());
}

CacheState ArraysCache::state() const {
  CacheState::List arrays;
  for (const auto& array : content_.arrays) {
    arrays.push_back(state_of(array));
  }
  CacheState::List list{{std::move(arrays)},
                        state_of(content_.left_padding),
                        state_of(content_.lengths)};
  return {std::move(list)};
}

void ArraysCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  reader.expect_size(3);
  StateReader arrays(kind(), reader.list()[0]);
  Content content;
  for (std::size_t i = 0; i < arrays.list().size(); ++i) {
    content.arrays.push_back(arrays.array(i));
  }
  if (content.arrays.empty()) {
    reader.fail("it has no arrays");
  }
  content.left_padding = reader.array(1);
  content.lengths = reader.array(2);
  for (const auto& counts : {content.left_padding, content.lengths}) {
    if (counts && (counts->ndim() != 1 || counts->dtype() != mx::int32)) {
      reader.fail("its padding or lengths are not a list of whole numbers");
    }
  }
  content_ = std::move(content);
}

void ArraysCache::append_arrays_to(std::vector<mx::array>& out) const {
  for (const auto& array : content_.arrays) {
    if (array) {
      out.push_back(*array);
    }
  }
  for (const auto& counts : {content_.left_padding, content_.lengths}) {
    if (counts) {
      out.push_back(*counts);
    }
  }
}

CachePtr make_arrays_cache(int num_arrays,
                           const std::vector<int>& left_padding) {
  return std::make_shared<ArraysCache>(num_arrays, left_padding);
}

}  // namespace mlxlm
