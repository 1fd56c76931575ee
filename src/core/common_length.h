// How far two sequences of tokens are the same.
#pragma once

#include <algorithm>
#include <span>

namespace mlxlm {

inline int common_length(std::span<const int> a, std::span<const int> b) {
  return static_cast<int>(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace mlxlm
