#include "load/faults.h"

#include <algorithm>
#include <sstream>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {

std::string to_text(const mx::Shape& shape) {
  std::string text = "[";
  for (int size : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

std::string to_text(const mx::Dtype& dtype) {
  std::ostringstream out;
  out << dtype;
  return out.str();
}

std::string to_text(const mx::array& array) {
  return to_text(array.dtype()) + " " + to_text(array.shape());
}

void Faults::throw_if_any(const std::string& headline) const {
  if (faults_.empty()) {
    return;
  }
  constexpr std::size_t kMostListed = 50;
  auto sorted = faults_;
  std::sort(sorted.begin(), sorted.end());
  std::string text = headline + ":";
  for (std::size_t i = 0; i < std::min(sorted.size(), kMostListed); ++i) {
    text += "\n  " + sorted[i].first + ": " + sorted[i].second;
  }
  if (sorted.size() > kMostListed) {
    text +=
        "\n  ... and " + std::to_string(sorted.size() - kMostListed) + " more";
  }
  throw Error(ErrorKind::weights, text);
}

}  // namespace mlxlm
