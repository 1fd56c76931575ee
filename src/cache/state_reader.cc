#include "cache/state_reader.h"

#include <sstream>

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

StateReader::KeysAndValues StateReader::keys_and_values() const {
  KeysAndValues held{array(0), array(1), 0};
  if (held.keys.has_value() != held.values.has_value()) {
    fail("it has keys or values, but not both");
  }
  if (!held.keys) {
    return held;
  }
  const auto& k = *held.keys;
  const auto& v = *held.values;
  bool fits = k.ndim() == 4 && v.ndim() == 4;
  for (int axis : {0, 1, 2}) {
    fits = fits && k.shape(axis) == v.shape(axis);
  }
  if (!fits) {
    std::ostringstream message;
    message << "keys of shape " << k.shape() << " and values of shape "
            << v.shape() << " don't go together";
    fail(message.str());
  }
  if (!mx::issubdtype(k.dtype(), mx::floating) ||
      !mx::issubdtype(v.dtype(), mx::floating)) {
    fail("its keys and values are not floating-point numbers");
  }
  held.tokens = k.shape(2);
  return held;
}

}  // namespace mlxlm
