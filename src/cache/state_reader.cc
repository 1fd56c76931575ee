#include "cache/state_reader.h"

#include <algorithm>
#include <sstream>
#include <tuple>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {

StateReader::StateReader(std::string_view kind, const CacheState& state)
    : kind_(kind), list_(std::get_if<CacheState::List>(&state.value)) {
  if (list_ == nullptr) {
    fail("its state is not a list");
  }
}

void StateReader::fail(const std::string& what) const {
  throw Error(ErrorKind::format, "unusable " + kind_ + ": " + what);
}

void StateReader::expect_size(std::size_t num_items) const {
  if (list_->size() != num_items) {
    fail("its state has " + std::to_string(list_->size()) + " items, not " +
         std::to_string(num_items));
  }
}

int StateReader::integer(std::size_t index, int least, int most) const {
  auto* value = std::get_if<int>(&list_->at(index).value);
  if (value == nullptr) {
    fail("item " + std::to_string(index) + " is not a whole number");
  }
  if (*value < least || *value > most) {
    fail("item " + std::to_string(index) + " is " + std::to_string(*value) +
         ", outside [" + std::to_string(least) + ", " + std::to_string(most) +
         "]");
  }
  return *value;
}

std::optional<mx::array> StateReader::array(std::size_t index) const {
  const auto& value = list_->at(index).value;
  if (std::holds_alternative<std::monostate>(value)) {
    return std::nullopt;
  }
  auto* array = std::get_if<mx::array>(&value);
  if (array == nullptr) {
    fail("item " + std::to_string(index) + " is not an array");
  }
  return *array;
}

// Keys or values: None, or arrays that fit the format and each other.
Rows StateReader::rows(std::size_t index, const RowFormat& format) const {
  const CacheState& state = list_->at(index);
  if (std::holds_alternative<std::monostate>(state.value)) {
    return Rows(format);
  }
  if (!format.quantized()) {
    auto rows = array(index);
    if (rows->ndim() != 4 || !mx::issubdtype(rows->dtype(), mx::floating)) {
      fail("its keys and values are not floating-point numbers of four axes");
    }
    return {format, {*rows}};
  }
  StateReader reader(kind_, state);
  reader.expect_size(3);
  std::vector<mx::array> arrays;
  for (std::size_t i = 0; i < 3; ++i) {
    auto part = reader.array(i);
    if (!part || part->ndim() != 4) {
      fail("an array is missing or doesn't have four axes");
    }
    arrays.push_back(*part);
    for (int axis : {0, 1, 2}) {
      if (part->shape(axis) != arrays[0].shape(axis)) {
        fail("data, scales and biases have different shapes");
      }
    }
  }
  const auto& [data, scales, zeros] = std::tie(arrays[0], arrays[1], arrays[2]);
  std::int64_t numbers = std::int64_t{scales.shape(3)} * format.group_size;
  if (data.dtype() != mx::uint32 ||
      !mx::issubdtype(scales.dtype(), mx::floating) ||
      zeros.dtype() != scales.dtype() || zeros.shape(3) != scales.shape(3) ||
      std::int64_t{data.shape(3)} * 32 != numbers * format.bits) {
    fail("data, scales and biases don't fit " + std::to_string(format.bits) +
         " bits in groups of " + std::to_string(format.group_size));
  }
  return {format, std::move(arrays)};
}

KeysAndValues StateReader::keys_and_values(int num_numbers,
                                           bool quantized) const {
  std::size_t plain_size = 2 + static_cast<std::size_t>(num_numbers);
  RowFormat formats[2];
  if (!quantized) {
    expect_size(plain_size);
  } else if (list_->size() != plain_size + 3) {
    expect_size(plain_size + 2);
  }
  for (std::size_t i = 0; quantized && i < 2; ++i) {
    formats[i].group_size = integer(plain_size, 0, 1024);
    formats[i].bits =
        integer(std::min(plain_size + 1 + i, list_->size() - 1), 0, 1024);
    if (auto fault = fault_of(formats[i])) {
      fail(*fault);
    }
  }
  KeysAndValues held{rows(0, formats[0]), rows(1, formats[1])};
  if (held.keys.empty() != held.values.empty()) {
    fail("it has keys or values, but not both");
  }
  if (held.empty()) {
    return held;
  }
  const mx::array& k = held.keys.arrays()[0];
  const mx::array& v = held.values.arrays()[0];
  for (int axis : {0, 1, 2}) {
    if (k.shape(axis) != v.shape(axis)) {
      std::ostringstream message;
      message << "keys of shape " << k.shape() << " and values of shape "
              << v.shape() << " don't go together";
      fail(message.str());
    }
  }
  return held;
}

CacheState state_with(const KeysAndValues& rows,
                      std::initializer_list<int> numbers) {
  CacheState::List list;
  for (const Rows* part : {&rows.keys, &rows.values}) {
    if (part->empty()) {
      list.push_back({});
    } else if (!part->format().quantized()) {
      list.push_back({part->plain()});
    } else {
      CacheState::List arrays;
      for (const auto& array : part->arrays()) {
        arrays.push_back({array});
      }
      list.push_back({std::move(arrays)});
    }
  }
  for (int number : numbers) {
    list.push_back(state_of(number));
  }
  const RowFormat& keys = rows.keys.format();
  const RowFormat& values = rows.values.format();
  if (keys.quantized()) {
    list.push_back(state_of(keys.group_size));
    list.push_back(state_of(keys.bits));
    if (values.bits != keys.bits) {
      list.push_back(state_of(values.bits));
    }
  }
  return {std::move(list)};
}

}  // namespace mlxlm
