// Rules for the names of tensors.
#include "models/weight_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

namespace mlxlm {
namespace {

using testing::UnorderedElementsAre;
using Action = WeightRule::Action;

Checkpoint with_weights(const std::vector<std::string>& names) {
  Checkpoint checkpoint;
  for (const auto& name : names) {
    checkpoint.weights.emplace(name, mx::zeros({2, 3}));
  }
  return checkpoint;
}

template <typename Map>
std::vector<std::string> keys(const Map& map) {
  std::vector<std::string> names;
  for (const auto& [name, value] : map) names.push_back(name);
  return names;
}

TEST(WeightRules, StarsStandForAnyCharacters) {
  auto checkpoint = with_weights(
      {"h.0.attn.bias", "h.0.attn.c_attn.bias", "x.h.1.mlp.w", "wte.weight"});
  apply_rules(checkpoint,
              {{Action::drop, "h.*.attn.bias"},
               {Action::rename, "h.*.c_attn.*", "layers.*.qkv.*"},
               {Action::rename, "x.*", "*"},
               {Action::rename, "wte.weight", "embed.weight"}});
  EXPECT_THAT(keys(checkpoint.weights),
              UnorderedElementsAre(
                  "layers.0.attn.qkv.bias", "h.1.mlp.w", "embed.weight"));
}

TEST(WeightRules, NamesMayBeExchanged) {
  auto checkpoint = with_weights({"a.x.weight", "b.x.weight"});
  checkpoint.weights.insert_or_assign("a.x.weight", mx::ones({1}));
  apply_rules(checkpoint,
              {{Action::rename, "a.*", "c.*"},
               {Action::rename, "b.*", "a.*"},
               {Action::rename, "c.*", "b.*"}});
  EXPECT_EQ(checkpoint.weights.at("b.x.weight").shape(), mx::Shape{1});
  EXPECT_EQ(checkpoint.weights.at("a.x.weight").shape(), (mx::Shape{2, 3}));
}

TEST(WeightRules, QuantizedModulesFollow) {
  auto checkpoint = with_weights({"model.language_model.up.weight",
                                  "model.language_model.up.scales",
                                  "vision_tower.up.weight"});
  checkpoint.quantized["model.language_model.up"] = {32, 4, "affine"};
  checkpoint.quantized["vision_tower.up"] = {};
  apply_rules(checkpoint,
              {{Action::drop, "*vision_tower*"},
               {Action::rename, "model.language_model.*", "model.*"}});
  EXPECT_THAT(keys(checkpoint.quantized), UnorderedElementsAre("model.up"));
  EXPECT_THAT(keys(checkpoint.weights),
              UnorderedElementsAre("model.up.weight", "model.up.scales"));
  rename_prefix(checkpoint, "", "text.");
  EXPECT_THAT(keys(checkpoint.quantized),
              UnorderedElementsAre("text.model.up"));
}

TEST(WeightRules, ShapesChange) {
  auto checkpoint = with_weights({"a.weight", "b.weight"});
  checkpoint.weights.insert_or_assign("a.bias", mx::zeros({3}));
  checkpoint.weights.insert_or_assign("c", mx::zeros({1, 1}));
  apply_rules(checkpoint, {{Action::transpose, "a.*"}, {Action::squeeze, "c"}});
  EXPECT_EQ(checkpoint.weights.at("a.weight").shape(), (mx::Shape{3, 2}));
  EXPECT_EQ(checkpoint.weights.at("a.bias").shape(), mx::Shape{3});
  EXPECT_EQ(checkpoint.weights.at("b.weight").shape(), (mx::Shape{2, 3}));
  EXPECT_EQ(checkpoint.weights.at("c").ndim(), 0);
}

}  // namespace
}  // namespace mlxlm
