// Arithmetic on sizes that come from files: none where it would overflow.
#pragma once

#include <concepts>
#include <optional>
#include <utility>

namespace mlxlm {

template <std::integral T>
std::optional<T> checked_add(T a, T b) {
  T sum;
  return __builtin_add_overflow(a, b, &sum) ? std::nullopt
                                            : std::optional<T>(sum);
}

template <std::integral T>
std::optional<T> checked_multiply(T a, T b) {
  T product;
  return __builtin_mul_overflow(a, b, &product) ? std::nullopt
                                                : std::optional<T>(product);
}

// The value as another integer type, if it fits.
template <std::integral To, std::integral From>
std::optional<To> checked_cast(From value) {
  return std::in_range<To>(value) ? std::optional<To>(static_cast<To>(value))
                                  : std::nullopt;
}

}  // namespace mlxlm
