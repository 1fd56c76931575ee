#include "load/foreign.h"

#include <cmath>
#include <map>
#include <set>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "core/json.h"
#include "load/quantization.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_data.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

mx::Dtype dtype_of(const std::string& name) {
  static const std::map<std::string, mx::Dtype> dtypes = {
      {"uint8", mx::uint8},
      {"int32", mx::int32},
      {"uint32", mx::uint32},
      {"float16", mx::float16},
      {"bfloat16", mx::bfloat16},
      {"float32", mx::float32}};
  return dtypes.at(name);
}

// A tensor as tests/data/make_foreign_weights.py writes it.
mx::array tensor_of(const json& value) {
  mx::Shape shape;
  for (const json& size : value["shape"]) {
    shape.push_back(size.get<int>());
  }
  mx::Dtype dtype = dtype_of(value["dtype"]);
  if (mx::issubdtype(dtype, mx::floating)) {
    auto data = value["data"].get<std::vector<float>>();
    return mx::astype(mx::array(data.data(), shape, mx::float32), dtype);
  }
  auto data = value["data"].get<std::vector<std::int64_t>>();
  return mx::astype(mx::array(data.data(), shape, mx::int64), dtype);
}

Weights tensors_of(const json& values) {
  Weights out;
  for (const auto& [name, value] : values.items()) {
    out.emplace(name, tensor_of(value));
  }
  return out;
}

void expect_equal(const Weights& actual, const Weights& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  for (const auto& [name, value] : expected) {
    auto it = actual.find(name);
    ASSERT_NE(it, actual.end()) << name;
    EXPECT_EQ(it->second.dtype(), value.dtype()) << name;
    EXPECT_EQ(it->second.shape(), value.shape()) << name;
    EXPECT_TRUE(mx::array_equal(it->second, value, true).item<bool>()) << name;
  }
}

TEST(Foreign, EqualsTheReference) {
  json data = read_json_file(test_data("foreign_weights.json"));
  ASSERT_GE(data["cases"].size(), 10u);
  for (const json& test : data["cases"]) {
    SCOPED_TRACE(test["name"].get<std::string>());
    json config = {{"quantization_config", test["quantization_config"]}};
    Weights weights = tensors_of(test["weights"]);
    convert_foreign_weights(config, "", test["fp8"], weights);
    expect_equal(weights, tensors_of(test["expected"]));
    auto matched = match_quantization(read_quantization_map(config), weights);
    bool quantized = weights.contains("a.scales") ||
                     weights.contains("mlp.experts.down_proj.scales");
    EXPECT_EQ(matched.size(), quantized ? 1u : 0u);
  }
}

std::string error_of(json config,
                     Weights weights,
                     ErrorKind kind,
                     const std::set<std::string>& fp8 = {}) {
  try {
    convert_foreign_weights(config, "", fp8, weights);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

json method(const char* name, json more = json::object()) {
  more["quant_method"] = name;
  return {{"quantization_config", more}};
}

// The numbers a quantized module stands for.
mx::array values_of(const Weights& weights, const Quantization& q) {
  return mx::dequantize(weights.at("a.weight"),
                        weights.at("a.scales"),
                        weights.at("a.biases"),
                        q.group_size,
                        q.bits,
                        q.mode);
}

// GPTQ: eight rows of one column in a word, in order; zeros minus one.
TEST(Foreign, GptqIsExact) {
  constexpr int kRows = 8;      // outputs
  constexpr int kColumns = 64;  // inputs
  constexpr int kGroup = 32;
  auto number = [](int row, int column) { return (row * 7 + column * 3) % 16; };
  auto zero = [](int row, int group) { return 1 + (row + 5 * group) % 15; };
  auto scale = [](int row, int group) { return 0.25f * (1 + row + group); };
  std::vector<std::uint32_t> qweight(kColumns / 8 * kRows);
  std::vector<std::uint32_t> qzeros(kColumns / kGroup * kRows / 8);
  std::vector<float> scales;
  std::vector<float> expected;
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      qweight[column / 8 * kRows + row] |=
          static_cast<std::uint32_t>(number(row, column) << (4 * (column % 8)));
      int group = column / kGroup;
      expected.push_back((number(row, column) - zero(row, group)) *
                         scale(row, group));
    }
  }
  for (int group = 0; group < kColumns / kGroup; ++group) {
    for (int row = 0; row < kRows; ++row) {
      qzeros[group] |=
          static_cast<std::uint32_t>((zero(row, group) - 1) << (4 * row));
      scales.push_back(scale(row, group));
    }
  }
  std::vector<int> g_idx;
  for (int column = 0; column < kColumns; ++column) {
    g_idx.push_back(column / kGroup);
  }
  json config = method("gptq", {{"bits", 4}, {"group_size", kGroup}});
  Weights weights;
  weights.emplace(
      "a.qweight",
      mx::view(mx::array(qweight.data(), {kColumns / 8, kRows}, mx::uint32),
               mx::int32));
  weights.emplace("a.qzeros",
                  mx::view(mx::array(qzeros.data(), {2, kRows / 8}, mx::uint32),
                           mx::int32));
  weights.emplace("a.scales", mx::array(scales.data(), {2, kRows}));
  weights.emplace("a.g_idx", mx::array(g_idx.data(), {kColumns}));
  Weights shuffled = weights;
  std::swap(g_idx[0], g_idx[40]);
  shuffled.insert_or_assign("a.g_idx", mx::array(g_idx.data(), {kColumns}));
  EXPECT_THAT(error_of(config, shuffled, ErrorKind::weights),
              HasSubstr("a: its columns are in groups out of order (g_idx)"));

  convert_foreign_weights(config, "", {}, weights);
  EXPECT_EQ(weights.size(), 3u);
  EXPECT_TRUE(mx::array_equal(values_of(weights, {kGroup, 4, "affine"}),
                              mx::array(expected.data(), {kRows, kColumns}))
                  .item<bool>());
}

// BitNet: row i + j * N / 4 in bits 2 j of byte row i; 0, 1, 2 for -1, 0, 1.
TEST(Foreign, BitnetIsExact) {
  constexpr int kPackedRows = 2;
  constexpr int kColumns = 64;
  std::vector<std::uint8_t> bytes;
  for (int i = 0; i < kPackedRows * kColumns; ++i) {
    int byte = 0;
    for (int j = 0; j < 4; ++j) {
      byte |= (i * 5 + j) % 3 << (2 * j);
    }
    bytes.push_back(static_cast<std::uint8_t>(byte));
  }
  for (bool inverse : {true, false}) {
    std::vector<float> expected;
    for (int row = 0; row < 4 * kPackedRows; ++row) {
      int shift = 2 * (row / kPackedRows);
      for (int column = 0; column < kColumns; ++column) {
        int byte = bytes[row % kPackedRows * kColumns + column];
        expected.push_back(((byte >> shift & 3) - 1) * (inverse ? 0.5f : 2.0f));
      }
    }
    json config = method(
        "bitnet", {{"linear_class", inverse ? "bitlinear" : "autobitlinear"}});
    Weights weights;
    weights.emplace("a.weight",
                    mx::array(bytes.data(), {kPackedRows, kColumns}));
    weights.emplace("a.weight_scale", mx::array({2.0f}));
    convert_foreign_weights(config, "", {}, weights);
    EXPECT_TRUE(mx::array_equal(values_of(weights, {64, 2, "affine"}),
                                mx::array(expected.data(), {8, kColumns}))
                    .item<bool>());
  }
}

TEST(Foreign, PackedMxfp4IsTakenAsItIs) {
  json config =
      method("compressed-tensors", {{"format", "mxfp4-pack-quantized"}});
  auto parts = mx::quantize(mx::random::normal({4, 64}), 32, 4, "mxfp4");
  Weights weights = {{"a.weight_packed", mx::view(parts[0], mx::uint8)},
                     {"a.weight_scale", parts[1]}};
  convert_foreign_weights(config, "", {}, weights);
  expect_equal(weights, {{"a.weight", parts[0]}, {"a.scales", parts[1]}});
  EXPECT_EQ(
      match_quantization(read_quantization_map(config), weights).at("a").mode,
      "mxfp4");
}

TEST(Foreign, ScalesForWholeNvfp4TensorsAreRefused) {
  Weights weights = {{"a.weight_packed", mx::zeros({2, 8}, mx::uint8)},
                     {"b.weight_scale_2", mx::array(1.0f)}};
  EXPECT_THAT(error_of(method("compressed-tensors",
                              {{"format", "nvfp4-pack-quantized"}}),
                       weights,
                       ErrorKind::weights),
              HasSubstr("a: is NVFP4 with a scale for the whole tensor"));
  EXPECT_THAT(error_of(method("modelopt", {{"quant_algo", "NVFP4"}}),
                       weights,
                       ErrorKind::unsupported),
              HasSubstr("weight_scale_2"));
}

TEST(Foreign, SettingsAreFoundWhereExportersLeaveThem) {
  TemporaryFolder folder;
  Weights weights;
  json config = {
      {"text_config", {{"quantization_config", {{"quant_method", "mxfp4"}}}}}};
  convert_foreign_weights(config, folder.path(), {}, weights);
  EXPECT_EQ(config["quantization"]["mode"], "mxfp4");

  write_text(folder / "hf_quant_config.json",
             R"({"quant_method": "modelopt",
                 "quantization": {"quant_algo": "NVFP4", "group_size": 16}})");
  config = json::object();
  convert_foreign_weights(config, folder.path(), {}, weights);
  EXPECT_EQ(config["quantization"],
            json::parse(R"({"group_size": 16, "bits": 4, "mode": "nvfp4"})"));

  config =
      json::parse(R"({"quantization_config": {"group_size": 32, "bits": 8}})");
  convert_foreign_weights(config, "", {}, weights);
  EXPECT_EQ(config["quantization"]["bits"], 8);

  config = json::parse(R"({"quantization_config": {}})");
  convert_foreign_weights(config, "", {}, weights);
  EXPECT_FALSE(config.contains("quantization"));
}

TEST(Foreign, MlxsOwnMapIsLeftAlone) {
  json config = json::parse(
      R"({"quantization": {"group_size": 32, "bits": 8},
          "quantization_config": {"quant_method": "awq"}})");
  json before = config;
  Weights weights;
  convert_foreign_weights(config, "", {}, weights);
  EXPECT_EQ(config, before);
}

TEST(Foreign, MethodsThatAreUnknownAreNamed) {
  EXPECT_THAT(error_of(method("bitsandbytes"), {}, ErrorKind::unsupported),
              AllOf(HasSubstr("quant_method \"bitsandbytes\""),
                    HasSubstr("awq, gptq")));
  EXPECT_THAT(
      error_of({{"quantization_config", {{"x", 1}}}}, {}, ErrorKind::config),
      HasSubstr("quantization_config.quant_method is missing"));
  EXPECT_THAT(error_of({{"quantization_config", 3}}, {}, ErrorKind::config),
              HasSubstr("quantization_config must be an object"));
  EXPECT_THAT(error_of(method("awq", {{"bits", 8}}), {}, ErrorKind::config),
              HasSubstr("bits must be 4 for AWQ and GPTQ models, not 8"));
  EXPECT_THAT(
      error_of(method("compressed-tensors", {{"format", "float-quantized"}}),
               {},
               ErrorKind::config),
      HasSubstr("format must be pack-quantized"));
  EXPECT_THAT(
      error_of(
          method("modelopt", {{"quant_algo", "FP8"}}), {}, ErrorKind::config),
      HasSubstr("quant_algo must be NVFP4, not \"FP8\""));
  EXPECT_THAT(error_of(method("compressed-tensors",
                              json::parse(R"({"format": "pack-quantized",
                        "config_groups": {"group_0": {"weights":
                          {"num_bits": 4, "group_size": -1}}}})")),
                       {},
                       ErrorKind::unsupported),
              HasSubstr("group size -1"));
  EXPECT_THAT(error_of(method("fp8", {{"weight_block_size", {64, 32}}}),
                       {},
                       ErrorKind::config),
              HasSubstr("weight_block_size must be two equal sizes"));
}

TEST(Foreign, FaultsOfTensorsAreListedAtOnce) {
  Weights weights;
  auto word = [](mx::Shape shape) { return mx::zeros(shape, mx::int32); };
  weights.emplace("none.qweight", word({64, 2}));
  weights.emplace("shape.qweight", word({60, 2}));
  weights.emplace("shape.scales", mx::zeros({2, 16}));
  weights.emplace("zeros.qweight", word({64, 2}));
  weights.emplace("zeros.scales", mx::zeros({2, 16}));
  weights.emplace("zeros.qzeros", word({2, 3}));
  weights.emplace("kind.qweight", mx::zeros({64, 2}));
  weights.emplace("kind.scales", mx::zeros({2, 16}));
  weights.emplace("flat.qweight", word({64}));
  weights.emplace("flat.scales", mx::array(1.0f));
  EXPECT_THAT(
      error_of(
          method("awq", {{"group_size", 32}}), weights, ErrorKind::weights),
      AllOf(HasSubstr("none: has a qweight, but no scales"),
            HasSubstr("shape: qweight [60, 2] doesn't fit scales [2, 16] with "
                      "groups of 32"),
            HasSubstr("zeros: qzeros int32 [2, 3] don't fit"),
            HasSubstr("kind: qweight must be a matrix of 32-bit integers"),
            HasSubstr("flat: qweight must be")));

  weights.clear();
  weights.emplace("no_scales_blocks", mx::zeros({2, 2, 16}, mx::uint8));
  weights.emplace("shape_blocks", mx::zeros({2, 2, 8}, mx::uint8));
  weights.emplace("shape_scales", mx::zeros({2, 2}, mx::uint8));
  EXPECT_THAT(error_of(method("mxfp4"), weights, ErrorKind::weights),
              AllOf(HasSubstr("no_scales: has _blocks, but no _scales"),
                    HasSubstr("shape: MXFP4 blocks uint8 [2, 2, 8]")));

  weights.clear();
  weights.emplace("alone.weight_scale_inv", mx::zeros({1, 1}));
  weights.emplace("shape.weight", mx::zeros({300, 4}, mx::uint8));
  weights.emplace("shape.weight_scale_inv", mx::zeros({2, 1}));
  weights.emplace("left.weight", mx::zeros({4, 4}, mx::uint8));
  EXPECT_THAT(
      error_of(method("fp8"), weights, ErrorKind::weights, {"left.weight"}),
      AllOf(HasSubstr("alone.weight: has a scale_inv, but isn't"),
            HasSubstr("shape.weight: scale_inv [2, 1] doesn't fit [300, 4] in "
                      "blocks of 128"),
            HasSubstr("left.weight: holds 8-bit floats without a scale")));

  weights.clear();
  weights.emplace("alone.weight_scale_inv", mx::zeros({2, 2}, mx::uint8));
  weights.emplace("rows.weight", mx::zeros({40, 64}, mx::uint8));
  weights.emplace("rows.weight_scale_inv", mx::zeros({1, 2}, mx::uint8));
  EXPECT_THAT(error_of(method("mxfp8"), weights, ErrorKind::weights),
              AllOf(HasSubstr("alone: MXFP8 scales uint8 [2, 2] without"),
                    HasSubstr("rows: scales uint8 [1, 2] don't cover weight")));

  weights.clear();
  weights.emplace("alone.weight_scale", mx::array({1.0f}));
  EXPECT_THAT(error_of(method("bitnet"), weights, ErrorKind::weights),
              HasSubstr("alone: must have a weight of four 2-bit numbers"));

  weights.clear();
  weights.emplace("alone.weight_packed", word({2, 8}));
  weights.emplace("zero.weight_packed", word({2, 8}));
  weights.emplace("zero.weight_scale", mx::zeros({2, 2}));
  weights.emplace("zero.weight_zero_point", mx::zeros({2, 2}));
  EXPECT_THAT(
      error_of(method("compressed-tensors", {{"format", "pack-quantized"}}),
               weights,
               ErrorKind::weights),
      AllOf(HasSubstr("alone: has a weight_packed, but no weight_scale"),
            HasSubstr("zero: has a weight_zero_point")));
}

}  // namespace
}  // namespace mlxlm
