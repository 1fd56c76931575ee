#include "load/quantization.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "load/faults.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

json config_of(const char* quantization) {
  return {{"quantization", json::parse(quantization)}};
}

template <typename Function>
std::string error_of(ErrorKind kind, Function function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

// A module of 4 rows.
void add_module(Weights& weights,
                const std::string& name,
                int columns,
                const Quantization& q) {
  auto parts = mx::quantize(
      mx::random::normal({4, columns}), q.group_size, q.bits, q.mode);
  weights.insert_or_assign(name + ".weight", parts[0]);
  weights.insert_or_assign(name + ".scales", parts[1]);
  if (parts.size() > 2) {
    weights.insert_or_assign(name + ".biases", parts[2]);
  }
}

TEST(QuantizationMap, ReadsTheSettingForAllAndForModules) {
  auto map = read_quantization_map(config_of(
      R"({"group_size": 64, "bits": 4, "quant_method": "x",
          "a": {"bits": 8, "group_size": 32}, "b": false, "c": true,
          "d": {"mode": "mxfp4", "group_size": 32, "bits": 4},
          "e": {"mode": "nvfp4"}})"));
  ASSERT_TRUE(map.has_value());
  EXPECT_EQ(map->all, (Quantization{64, 4, "affine"}));
  EXPECT_EQ(map->modules.at("a"), (Quantization{32, 8, "affine"}));
  EXPECT_EQ(map->modules.at("b"), std::nullopt);
  EXPECT_EQ(map->modules.at("c"), map->all);
  EXPECT_EQ(map->modules.at("d"), (Quantization{32, 4, "mxfp4"}));
  EXPECT_EQ(map->modules.at("e"), (Quantization{16, 4, "nvfp4"}));
  EXPECT_EQ(map->modules.size(), 5u);
  EXPECT_FALSE(read_quantization_map(json::object()).has_value());
  EXPECT_FALSE(read_quantization_map({{"quantization", nullptr}}).has_value());
}

TEST(QuantizationMap, RefusesWhatMlxLacks) {
  auto error = [](const char* text) {
    return error_of(ErrorKind::config,
                    [&] { read_quantization_map(config_of(text)); });
  };
  EXPECT_THAT(error(R"({"group_size": 64, "bits": 7})"),
              HasSubstr("quantization.bits must be 2, 3, 4, 5, 6 or 8, not 7"));
  EXPECT_THAT(
      error(R"({"group_size": 48, "bits": 4})"),
      HasSubstr("quantization.group_size must be 32, 64 or 128, not 48"));
  EXPECT_THAT(error(R"({"group_size": "x", "bits": 4})"),
              HasSubstr("must be a positive integer, not \"x\""));
  EXPECT_THAT(error(R"({"mode": "int4"})"),
              HasSubstr("quantization.mode must be affine, mxfp4, mxfp8 or "
                        "nvfp4, not \"int4\""));
  EXPECT_THAT(error(R"({"mode": "mxfp4", "bits": 8, "group_size": 32})"),
              HasSubstr("quantization.bits must be 4 with mode mxfp4, not 8"));
  EXPECT_THAT(error(R"({"mode": "nvfp4", "group_size": 32})"),
              HasSubstr("group_size must be 16 with mode nvfp4, not 32"));
  EXPECT_THAT(error(R"({"bits": 4, "layers.0.up": {"bits": 9}})"),
              HasSubstr("quantization.layers.0.up.bits must be"));
  EXPECT_THAT(error("[4]"), HasSubstr("quantization must be an object"));
}

TEST(MatchQuantization, FindsEveryModuleOfEveryFormat) {
  Weights weights;
  auto map = read_quantization_map(config_of(
      R"({"group_size": 64, "bits": 4,
          "other": {"group_size": 32, "bits": 5}, "skipped": false})"));
  std::vector<Quantization> all = {
      {32, 4, "mxfp4"}, {32, 8, "mxfp8"}, {16, 4, "nvfp4"}};
  for (int group_size : {32, 64, 128}) {
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      all.push_back({group_size, bits, "affine"});
    }
  }
  for (const Quantization& q : all) {
    EXPECT_TRUE(is_supported(q));
    map->modules[describe(q)] = q;
    add_module(weights, describe(q), 256, q);
  }
  add_module(weights, "usual", 128, {64, 4, "affine"});
  add_module(weights, "other", 128, {32, 5, "affine"});
  add_module(weights, "skipped", 128, {64, 4, "affine"});
  weights.insert_or_assign("norm.weight", mx::zeros({4}));
  auto matched = match_quantization(map, weights);
  EXPECT_EQ(matched.size(), all.size() + 2);
  for (const Quantization& q : all) {
    EXPECT_EQ(matched.at(describe(q)), q);
  }
  EXPECT_EQ(matched.at("usual"), (Quantization{64, 4, "affine"}));
  EXPECT_EQ(matched.at("other"), (Quantization{32, 5, "affine"}));
}

TEST(MatchQuantization, TakesFromTheShapesWhatTheMapDoesntName) {
  Weights weights;
  add_module(weights, "eight", 128, {64, 8, "affine"});
  add_module(weights, "six", 128, {32, 6, "affine"});
  add_module(weights, "mxfp4", 128, {32, 4, "mxfp4"});
  add_module(weights, "mxfp8", 128, {32, 8, "mxfp8"});
  add_module(weights, "nvfp4", 128, {16, 4, "nvfp4"});
  auto matched = match_quantization(
      read_quantization_map(config_of(R"({"group_size": 64, "bits": 4})")),
      weights);
  EXPECT_EQ(matched.at("eight"), (Quantization{64, 8, "affine"}));
  EXPECT_EQ(matched.at("six").bits * matched.at("six").group_size, 192);
  EXPECT_EQ(matched.at("mxfp4"), (Quantization{32, 4, "mxfp4"}));
  EXPECT_EQ(matched.at("mxfp8"), (Quantization{32, 8, "mxfp8"}));
  EXPECT_EQ(matched.at("nvfp4"), (Quantization{16, 4, "nvfp4"}));
}

TEST(MatchQuantization, ListsEveryFaultAtOnce) {
  Weights weights;
  Quantization q{64, 4, "affine"};
  for (const char* name : {"good",
                           "no_biases",
                           "rows",
                           "columns",
                           "words",
                           "zero",
                           "bias_shape"}) {
    add_module(weights, name, 128, q);
  }
  weights.erase("no_biases.biases");
  weights.insert_or_assign("rows.scales", mx::zeros({3, 2}));
  weights.insert_or_assign("columns.scales", mx::zeros({4, 3}));
  weights.insert_or_assign("words.weight", mx::zeros({4, 128}));
  weights.insert_or_assign("zero.scales", mx::array(1.0f));
  weights.insert_or_assign("bias_shape.biases", mx::zeros({4, 1}));
  add_module(weights, "with_biases", 128, {32, 4, "mxfp4"});
  weights.insert_or_assign("with_biases.biases", mx::zeros({4, 4}));
  weights.insert_or_assign("global.weight", mx::zeros({4, 16}, mx::uint32));
  weights.insert_or_assign("global.scales", mx::zeros({4, 8}, mx::uint8));
  weights.insert_or_assign("global.global_scale", mx::array(1.0f));
  std::string error = error_of(ErrorKind::weights, [&] {
    match_quantization(
        read_quantization_map(config_of(R"({"group_size": 64, "bits": 4})")),
        weights);
  });
  EXPECT_THAT(
      error,
      AllOf(HasSubstr("no_biases: is affine, but has no biases"),
            HasSubstr("rows: weight [4, 16] and scales [3, 2] don't fit 4-bit "
                      "affine, groups of 64"),
            HasSubstr("columns: weight [4, 16] and scales [4, 3]"),
            HasSubstr("words: has scales, but its weight is float32"),
            HasSubstr("zero: weight [4, 16] and scales []"),
            HasSubstr("bias_shape: biases float32 [4, 1]"),
            HasSubstr("with_biases: is mxfp4, but has biases"),
            HasSubstr("global: has a global_scale"),
            Not(HasSubstr("good"))));
}

TEST(MatchQuantization, NeedsAMapForQuantizedWeights) {
  Weights weights;
  add_module(weights, "a", 64, {64, 4, "affine"});
  EXPECT_THAT(error_of(ErrorKind::config,
                       [&] { match_quantization(std::nullopt, weights); }),
              HasSubstr("no \"quantization\" with group_size and bits"));
  EXPECT_TRUE(match_quantization(std::nullopt, {}).empty());
}

TEST(FitToColumns, TellsApartWhatTakesTheSameBits) {
  Quantization guess{64, 3, "affine"};
  EXPECT_EQ(fit_to_columns(guess, 8, 256), (Quantization{32, 6, "affine"}));
  EXPECT_EQ(fit_to_columns(guess, 4, 256), guess);
  // What can't be stays, for the shapes to be found wrong.
  for (int columns : {0, -1, 1, 100, 16}) {
    EXPECT_EQ(fit_to_columns(guess, 8, columns), guess);
  }
  EXPECT_EQ(fit_to_columns(guess, 0, 256), guess);
  Quantization mxfp4{32, 4, "mxfp4"};
  EXPECT_EQ(fit_to_columns(mxfp4, 4, 256), mxfp4);
}

TEST(MatchQuantization, StacksOfNvfp4ExpertsMayHaveGlobalScales) {
  Weights weights = {{"a.weight", mx::zeros({2, 4, 8}, mx::uint32)},
                     {"a.scales", mx::zeros({2, 4, 4}, mx::uint8)},
                     {"a.global_scale", mx::zeros({2})}};
  auto map = read_quantization_map(config_of(R"({"mode": "nvfp4"})"));
  EXPECT_EQ(match_quantization(map, weights).at("a").mode, "nvfp4");
  weights.insert_or_assign("a.global_scale", mx::zeros({3}));
  EXPECT_THROW(match_quantization(map, weights), Error);
}

TEST(Faults, OfManyTheFirstAreListed) {
  Faults faults;
  for (int i = 0; i < 120; ++i) {
    faults.add("tensor" + std::to_string(i), "is wrong");
  }
  EXPECT_THAT(error_of(ErrorKind::weights,
                       [&] { faults.throw_if_any("the model is broken"); }),
              AllOf(HasSubstr("the model is broken:\n  tensor0: is wrong\n"),
                    HasSubstr("... and 70 more")));
  EXPECT_NO_THROW(Faults().throw_if_any("x"));
}

}  // namespace
}  // namespace mlxlm
