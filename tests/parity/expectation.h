// What the reference computed for one model, and how close is close enough.
#pragma once

#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/array.h>

namespace mlxlm::parity {

namespace mx = mlx::core;

class Expectation {
 public:
  static constexpr int kWhole = -1;  // not a row of the tensor

  // Reads expected.safetensors of the folder.
  explicit Expectation(const std::filesystem::path& folder);

  bool has(const std::string& name) const { return tensors_.contains(name); }
  mx::array array(const std::string& name) const { return tensors_.at(name); }
  std::vector<int> ints(const std::string& name, int row = kWhole) const;

  // Every value within the tolerance of the dtype; for logits of a float32
  // model also within ten times what rounding of the weights changes. `row`:
  // that of a tensor [rows, V].
  testing::AssertionResult near(const std::string& name,
                                const mx::array& actual,
                                int row = kWhole) const;

  // The same tokens up to the first that was as good as tied. `name` is the
  // part before "_greedy" or "greedy" itself.
  testing::AssertionResult same_tokens(const std::string& name,
                                       const std::vector<int>& actual,
                                       int row = kWhole) const;

 private:
  std::vector<float> floats(const std::string& name, int row) const;

  std::unordered_map<std::string, mx::array> tensors_;
  double tolerance_ = 1e-3;
  double noise_ = 0;
  bool exact_dtype_ = true;
};

}  // namespace mlxlm::parity
