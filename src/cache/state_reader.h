// Reads a CacheState that came from a file: every step checked.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <mlx/array.h>

#include <mlxlm/cache.h>

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
  // None or keys and values, [B, H, T, D] and [B, H, T, Dv] of floats.
  struct KeysAndValues {
    std::optional<mx::array> keys;
    std::optional<mx::array> values;
    int tokens = 0;  // T
  };
  KeysAndValues keys_and_values() const;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  std::string kind_;
  const CacheState::List* list_;
};

// Makes states.
inline CacheState state_of(int value) { return {value}; }
inline CacheState state_of(std::string value) { return {std::move(value)}; }
inline CacheState state_of(const mx::array& value) { return {value}; }
inline CacheState state_of(const std::optional<mx::array>& value) {
  return value ? CacheState{*value} : CacheState{};
}
template <typename... Items>
CacheState state_list(const Items&... items) {
  CacheState::List list;
  (list.push_back(state_of(items)), ...);
  return {std::move(list)};
}

}  // namespace mlxlm
