#include "tests/parity/expectation.h"

#include <algorithm>
#include <cmath>

#include <mlx/mlx.h>

namespace mlxlm::parity {
namespace {

std::vector<float> to_floats(const mx::array& a) {
  auto flat = mx::contiguous(mx::astype(mx::flatten(a), mx::float32));
  mx::eval(flat);
  return {flat.data<float>(), flat.data<float>() + flat.size()};
}

}  // namespace

Expectation::Expectation(const std::filesystem::path& folder) {
  auto [tensors, metadata] =
      mx::load_safetensors((folder / "expected.safetensors").string());
  tensors_ = std::move(tensors);
  noise_ = std::stod(metadata.at("noise"));
  const auto& dtype = metadata.at("logits_dtype");
  exact_dtype_ = dtype == "float32";
  tolerance_ = exact_dtype_ ? 1e-3 : dtype == "float16" ? 1e-2 : 8e-2;
}

std::vector<float> Expectation::floats(const std::string& name, int row) const {
  const auto& values = tensors_.at(name);
  return to_floats(row == kWhole ? values : mx::take(values, row, 0));
}

std::vector<int> Expectation::ints(const std::string& name, int row) const {
  auto values = floats(name, row);
  return {values.begin(), values.end()};
}

testing::AssertionResult Expectation::near(const std::string& name,
                                           const mx::array& actual,
                                           int row) const {
  const auto want = floats(name, row);
  const auto got = to_floats(actual);
  if (want.size() != got.size()) {
    return testing::AssertionFailure()
           << name << " has " << got.size() << " values, not " << want.size();
  }
  double squares = 0;
  for (float value : want) squares += double(value) * value;
  const double rms = std::sqrt(squares / want.size());
  const double absolute = std::max(tolerance_ * rms, 10 * noise_);
  double largest = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(double(want[i]) - got[i]);
    largest = std::max(largest, error);
    if (!(error <= absolute + tolerance_ * std::abs(want[i]))) {
      return testing::AssertionFailure()
             << name << "[" << i << "] is " << got[i] << ", not " << want[i];
    }
  }
  const bool logits = name.starts_with("logits");
  if (logits && exact_dtype_ && largest > 10 * noise_) {
    return testing::AssertionFailure()
           << name << ": largest error " << largest << ", noise " << noise_;
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult Expectation::same_tokens(
    const std::string& name, const std::vector<int>& actual, int row) const {
  const bool plain = name == "greedy";
  const auto want = ints(plain ? "greedy" : name + "_greedy", row);
  const auto margin = floats(plain ? "greedy_margin" : name + "_margin", row);
  double tie = std::max(1e-4, 2 * noise_);
  if (!exact_dtype_) tie = std::max(tie, tolerance_);
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (i < actual.size() && want[i] == actual[i]) continue;
    if (i < actual.size() && margin[i] < tie) break;
    return testing::AssertionFailure()
           << name << " token " << i << " is "
           << (i < actual.size() ? actual[i] : -1) << ", not " << want[i]
           << " (margin " << margin[i] << ")";
  }
  return testing::AssertionSuccess();
}

}  // namespace mlxlm::parity
