#include "core/nearest.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace mlxlm {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      std::size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

std::optional<std::string> nearest_name(std::string_view wanted,
                                        std::span<const std::string> names) {
  std::optional<std::string> best;
  // Names longer than this are no typing error, and would cost too much.
  constexpr std::size_t kLongestName = 256;
  if (wanted.size() > kLongestName) {
    return best;
  }
  std::size_t best_distance = std::max<std::size_t>(wanted.size() / 2, 1) + 1;
  for (const std::string& name : names) {
    std::size_t distance = edit_distance(wanted, name);
    if (distance < best_distance) {
      best_distance = distance;
      best = name;
    }
  }
  return best;
}

}  // namespace mlxlm
