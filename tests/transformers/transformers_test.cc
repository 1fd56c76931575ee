// Model types that the reference lacks, or gets wrong: tiny models must compute
// what transformers does (make_expected.py), whole and token by token.
#include <cstdint>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include "models/make_model.h"
#include "tests/parity/batch_check.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<std::string> names() {
  std::vector<std::string> found;
  for (const auto& file : fs::directory_iterator(MLXLM_EXPECTED)) {
    found.push_back(file.path().stem().string());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// As in make_expected.py.
mx::array numbers(const std::string& name, const mx::Shape& shape) {
  std::uint32_t seed = 2166136261u;
  for (unsigned char byte : name) seed = (seed ^ byte) * 16777619u;
  std::size_t size = 1;
  for (int length : shape) size *= length;
  std::vector<float> values;
  for (std::uint32_t i = 0; i < size; ++i) {
    std::uint32_t x = seed + i;
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    x ^= x >> 16;
    values.push_back(static_cast<float>(x / 2147483648.0 - 1));
  }
  return mx::array(values.begin(), shape);
}

mx::array drawn(const std::string& name, const mx::Shape& shape) {
  const auto values = numbers(name, shape);
  if (name.find("norm") != std::string::npos && shape.size() == 1) {
    return mx::add(mx::array(1.0f), mx::multiply(mx::array(0.3f), values));
  }
  return mx::multiply(values, mx::array(2 / std::sqrt(float(shape.back()))));
}

// Whole numbers below `end`.
mx::array drawn_integers(const std::string& name,
                         const mx::Shape& shape,
                         int end) {
  auto values = mx::multiply(mx::add(numbers(name, shape), mx::array(1.0f)),
                             mx::array(static_cast<float>(end) / 2));
  return mx::astype(values, mx::int64);
}

Checkpoint checkpoint_of(const json& expected) {
  Checkpoint checkpoint;
  checkpoint.config = expected.at("config");
  checkpoint.source = "tiny";
  for (const auto& [name, shape] : expected.at("tensors").items()) {
    const auto lengths = shape.get<std::vector<int>>();
    const mx::Shape own(lengths.begin(), lengths.end());
    const auto& integers = expected.at("integers");
    checkpoint.weights.emplace(
        name,
        integers.contains(name)
            ? drawn_integers(name, own, integers.at(name).get<int>())
            : drawn(name, own));
  }
  return checkpoint;
}

mx::array forward(Model& model,
                  std::span<const int> tokens,
                  const PromptCache& cache) {
  const auto count = static_cast<int>(tokens.size());
  return mx::squeeze(model.forward(mx::array(tokens.data(), {1, count}), cache),
                     0);
}

class Transformers : public testing::TestWithParam<std::string> {};

TEST_P(Transformers, ComputesTheSame) {
  std::ifstream file(fs::path(MLXLM_EXPECTED) / (GetParam() + ".json"));
  const json expected = json::parse(file);
  const auto tokens = expected.at("tokens").get<std::vector<int>>();
  const ModelPtr model = make_model(checkpoint_of(expected));
  const auto whole = forward(*model, tokens, {});
  const auto cache = model->make_cache();
  std::vector<mx::array> rows;
  const std::size_t chunk = 5;
  rows.push_back(forward(*model, std::span(tokens).first(chunk), cache));
  for (std::size_t i = chunk; i < tokens.size(); ++i) {
    rows.push_back(forward(*model, std::span(tokens).subspan(i, 1), cache));
  }
  const auto stepwise = mx::concatenate(rows, 0);
  const auto& positions = expected.at("positions");
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const int at = positions[i];
    const auto values = expected.at("logits")[i].get<std::vector<float>>();
    const mx::array theirs(values.begin(), {static_cast<int>(values.size())});
    for (const auto& ours : {whole, stepwise}) {
      auto gap = mx::max(mx::abs(mx::subtract(mx::take(ours, at, 0), theirs)));
      EXPECT_LT(gap.item<float>(), 1e-4f) << "position " << at;
    }
  }
  parity::check_batch(model, tokens);
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Transformers,
                         testing::ValuesIn(names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace mlxlm
