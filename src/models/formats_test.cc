// Whole models in the formats of other tools give the logits of the same
// numbers as plain floats.
#include <cmath>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/model.h>

#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using Tensors = std::unordered_map<std::string, mx::array>;

constexpr int kGroupSize = 32;

// [1, L, V] of a model folder.
mx::array logits_of(const std::filesystem::path& folder) {
  auto model = load_model(folder.string());
  return model->forward(mx::array({5, 99, 7, 42}, {1, 4}));
}

void write_model(const std::filesystem::path& folder,
                 const Tensors& tensors,
                 const json& config_changes) {
  json config = tiny_config();
  config.update(config_changes);
  write_text(folder / "config.json", config.dump());
  mx::save_safetensors((folder / "model.safetensors").string(), tensors);
}

// One matrix in another format, and the numbers it stands for.
struct Converted {
  Tensors parts;     // by the suffix, ".qweight"
  mx::array values;  // [N, K]
};

// A model whose projections are converted must give the logits of the one
// that holds their values.
void expect_same_logits(const json& quantization_config,
                        Converted (*convert)(const mx::array& weight)) {
  Tensors plain;
  Tensors foreign;
  for (const auto& [name, value] : tiny_weights()) {
    if (name.find("proj.weight") == std::string::npos) {
      plain.emplace(name, value);
      foreign.emplace(name, value);
      continue;
    }
    Converted converted = convert(value);
    std::string module = name.substr(0, name.size() - std::size(".weight") + 1);
    plain.emplace(name, converted.values);
    for (const auto& [suffix, part] : converted.parts) {
      foreign.emplace(module + suffix, part);
    }
  }
  TemporaryFolder folders[2];
  write_model(folders[0].path(), plain, json::object());
  write_model(folders[1].path(),
              foreign,
              {{"quantization_config", quantization_config}});
  mx::array expected = logits_of(folders[0].path());
  mx::array actual = logits_of(folders[1].path());
  mx::array worst = mx::max(mx::abs(mx::subtract(
      mx::astype(expected, mx::float32), mx::astype(actual, mx::float32))));
  EXPECT_LT(worst.item<float>(), 1e-3f);
}

// Integers of 0 to 15, a zero and a scale for each group: [N, K / group, group]
// and [N, K / group, 1].
struct Integers {
  mx::array numbers;
  mx::array zeros;
  mx::array scales;

  explicit Integers(const mx::array& weight)
      : numbers(mx::zeros({1})), zeros(numbers), scales(numbers) {
    mx::array grouped = mx::reshape(weight, {weight.shape(0), -1, kGroupSize});
    mx::array low = mx::min(grouped, -1, true);
    scales = mx::divide(mx::subtract(mx::max(grouped, -1, true), low),
                        mx::array(15.0f));
    zeros = mx::clip(mx::round(mx::negative(mx::divide(low, scales))),
                     mx::array(1.0f),
                     mx::array(15.0f));
    numbers = mx::clip(mx::add(mx::round(mx::divide(grouped, scales)), zeros),
                       mx::array(0.0f),
                       mx::array(15.0f));
  }
  mx::array values(const mx::array& weight) const {
    return mx::reshape(mx::multiply(mx::subtract(numbers, zeros), scales),
                       weight.shape());
  }
};

// Eight numbers a word along the last axis; number i goes to place order[i].
mx::array pack_words(const mx::array& numbers, std::vector<int> order) {
  mx::Shape shape = numbers.shape();
  shape.back() /= 8;
  shape.push_back(8);
  for (int& place : order) {
    place *= 4;
  }
  mx::array words = mx::sum(
      mx::left_shift(mx::reshape(mx::astype(numbers, mx::uint32), shape),
                     mx::astype(mx::array(order.data(), {8}), mx::uint32)),
      -1);
  return mx::view(mx::astype(words, mx::uint32), mx::int32);
}

Converted to_awq(const mx::array& weight) {
  const std::vector<int> order = {0, 4, 1, 5, 2, 6, 3, 7};
  Integers integers(weight);
  mx::array numbers = mx::reshape(integers.numbers, weight.shape());
  auto by_group = [](const mx::array& x) {  // [N, G, 1] -> [G, N]
    return mx::contiguous(mx::transpose(mx::squeeze(x, -1)));
  };
  return {{{".qweight", pack_words(mx::transpose(numbers), order)},
           {".qzeros", pack_words(by_group(integers.zeros), order)},
           {".scales", by_group(integers.scales)}},
          integers.values(weight)};
}

TEST(Formats, AwqModelsEqualTheirNumbers) {
  expect_same_logits(
      {{"quant_method", "awq"}, {"bits", 4}, {"group_size", kGroupSize}},
      to_awq);
}

Converted to_gptq(const mx::array& weight) {
  const std::vector<int> order = {0, 1, 2, 3, 4, 5, 6, 7};
  Integers integers(weight);
  mx::array numbers = mx::reshape(integers.numbers, weight.shape());
  mx::array words = mx::contiguous(mx::transpose(pack_words(numbers, order)));
  auto by_group = [](const mx::array& x) {
    return mx::contiguous(mx::transpose(mx::squeeze(x, -1)));
  };
  mx::array zeros = mx::subtract(by_group(integers.zeros), mx::array(1.0f));
  return {{{".qweight", words},
           {".qzeros", pack_words(zeros, order)},
           {".scales", by_group(integers.scales)},
           {".g_idx",
            mx::floor_divide(mx::arange(weight.shape(1), mx::int32),
                             mx::array(kGroupSize))}},
          integers.values(weight)};
}

TEST(Formats, GptqModelsEqualTheirNumbers) {
  expect_same_logits(
      {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", kGroupSize}},
      to_gptq);
}

Converted to_fp8(const mx::array& weight) {
  mx::array scale = mx::array({0.01f}, {1, 1});
  mx::array bytes = mx::to_fp8(mx::divide(weight, scale));
  mx::array values = mx::multiply(mx::from_fp8(bytes, mx::bfloat16), scale);
  return {{{".weight", bytes}, {".weight_scale_inv", scale}},
          mx::astype(values, mx::bfloat16)};
}

TEST(Formats, Fp8ModelsEqualTheirNumbers) {
  expect_same_logits(
      {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}, to_fp8);
}

Converted to_mxfp8(const mx::array& weight) {
  auto parts = mx::quantize(weight, 32, 8, "mxfp8");
  return {{{".weight", mx::view(parts[0], mx::uint8)},
           {".weight_scale_inv", parts[1]}},
          mx::dequantize(parts[0],
                         parts[1],
                         std::nullopt,
                         32,
                         8,
                         "mxfp8",
                         std::nullopt,
                         mx::float32)};
}

TEST(Formats, Mxfp8ModelsEqualTheirNumbers) {
  expect_same_logits({{"quant_method", "mxfp8"}}, to_mxfp8);
}

// A map that names one setting for all, though one module has another of the
// same number of bits a group.
TEST(Formats, AModuleMayDifferFromTheMap) {
  Tensors tensors = tiny_weights({.quantize_bits = 3, .group_size = 64});
  const std::string module = "model.layers.0.mlp.down_proj";
  mx::array weight = mx::dequantize(tensors.at(module + ".weight"),
                                    tensors.at(module + ".scales"),
                                    tensors.at(module + ".biases"),
                                    64,
                                    3);
  auto parts = mx::quantize(weight, 32, 6);
  tensors.insert_or_assign(module + ".weight", parts[0]);
  tensors.insert_or_assign(module + ".scales", parts[1]);
  tensors.insert_or_assign(module + ".biases", parts[2]);
  json map = {{"group_size", 64}, {"bits", 3}};
  TemporaryFolder folders[2];
  write_model(folders[0].path(), tensors, {{"quantization", map}});
  map[module] = {{"group_size", 32}, {"bits", 6}};
  write_model(folders[1].path(), tensors, {{"quantization", map}});
  EXPECT_TRUE(mx::array_equal(logits_of(folders[0].path()),
                              logits_of(folders[1].path()))
                  .item<bool>());
}

}  // namespace
}  // namespace mlxlm
