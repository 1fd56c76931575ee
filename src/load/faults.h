// Faults of many tensors, reported at once.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <mlx/array.h>

namespace mlxlm {

namespace mx = mlx::core;

// "[2, 3]", "float16", "float16 [2, 3]".
std::string to_text(const mx::Shape& shape);
std::string to_text(const mx::Dtype& dtype);
std::string to_text(const mx::array& array);

class Faults {
 public:
  void add(const std::string& tensor, const std::string& what) {
    faults_.emplace_back(tensor, what);
  }
  bool empty() const { return faults_.empty(); }

  // Throws Error{weights}: the headline, then one line per fault in the order
  // of the tensors' names; of many, the first ones and the number of the rest.
  void throw_if_any(const std::string& headline) const;

 private:
  std::vector<std::pair<std::string, std::string>> faults_;
};

}  // namespace mlxlm
