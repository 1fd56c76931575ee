// Reads a CacheState that came from a file: every step checked.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include <mlx/array.h>

#include <mlxlm/cache.h>

#include "cache/rows.h"

namespace mlxlm {

// The state of one cache: a list of a known length. Throws Error{format}
// naming the kind and the item.
class StateReader {
 public:
  StateReader(std::string_view kind, const CacheState& state);

  // Throws unless the list has this many items.
  void expect_size(std::size_t num_items) const;

  const CacheState::List& list() const { return *list_; }

  // Item `index` in [least, most].
  int integer(std::size_t index, int least, int most) const;
  // None or an array.
  std::optional<mx::array> array(std::size_t index) const;

  // A state as state_with() makes it, with `num_numbers` numbers: its keys
  // [B, H, T, D] and values [B, H, T, Dv], of floats or quantized.
  KeysAndValues keys_and_values(int num_numbers, bool quantized) const;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  Rows rows(std::size_t index, const RowFormat& format) const;

  std::string kind_;
  const CacheState::List* list_;
};

// Makes states.
inline CacheState state_of(int value) { return {value}; }
inline CacheState state_of(std::string value) { return {std::move(value)}; }
inline CacheState state_of(const std::optional<mx::array>& value) {
  return value ? CacheState{*value} : CacheState{};
}

// Keys, values and numbers; if quantized, each of the first two is a list of
// three arrays, and behind the numbers are the group size and the bits: once
// as in the reference's QuantizedKVCache, or those of keys and those of values
// where they differ.
CacheState state_with(const KeysAndValues& rows,
                      std::initializer_list<int> numbers);

}  // namespace mlxlm
