// Models from configurations and weights, good and bad.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "models/model_fault.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

Checkpoint tiny(const TinyModel& options = {}) {
  Checkpoint checkpoint;
  checkpoint.config = tiny_config(options);
  checkpoint.weights = tiny_weights(options);
  checkpoint.source = "tiny";
  return checkpoint;
}

std::vector<float> logits_of(Model& model, const std::vector<int>& tokens) {
  auto logits = mx::contiguous(mx::flatten(model.forward(
      mx::array(tokens.data(), {1, static_cast<int>(tokens.size())}))));
  mx::eval(logits);
  return {logits.data<float>(), logits.data<float>() + logits.size()};
}

std::string config_fault(const json& changes,
                         ErrorKind kind = ErrorKind::config) {
  auto checkpoint = tiny();
  checkpoint.config.update(changes);
  return fault(std::move(checkpoint), kind);
}

TEST(MakeModel, UnknownTypeNamesTheNearestAndAll) {
  auto message = config_fault({{"model_type", "lama"}}, ErrorKind::unsupported);
  EXPECT_THAT(message, HasSubstr("\"lama\""));
  EXPECT_THAT(message, HasSubstr("nearest name is \"llama\""));
  EXPECT_THAT(message, HasSubstr("qwen3_moe"));
  EXPECT_THAT(config_fault({{"model_type", nullptr}}),
              HasSubstr("model_type is missing"));
}

TEST(MakeModel, ListsEveryFaultOfTheWeights) {
  auto checkpoint = tiny();
  auto& weights = checkpoint.weights;
  weights.erase("model.layers.0.mlp.up_proj.weight");
  weights.insert_or_assign("model.norm.weight", mx::zeros({63}));
  weights.insert_or_assign("model.layers.1.mlp.down_proj.weight",
                           mx::zeros({64, 128}, mx::int32));
  weights.insert_or_assign("model.layers.2.foo.weight", mx::zeros({2, 3}));
  auto message = fault(checkpoint, ErrorKind::weights);
  EXPECT_THAT(message, HasSubstr("tiny: the weights don't fit"));
  EXPECT_THAT(message, HasSubstr("layers.0.mlp.up_proj.weight"));
  EXPECT_THAT(message, HasSubstr("[128, 64]"));
  EXPECT_THAT(message, HasSubstr("model.norm.weight"));
  EXPECT_THAT(message, HasSubstr("[63]"));
  EXPECT_THAT(message, HasSubstr("int32 [64, 128]"));
  EXPECT_THAT(message, HasSubstr("layers.2.foo.weight"));

  message = fault(checkpoint, ErrorKind::weights, {.strict = false});
  EXPECT_THAT(message, Not(HasSubstr("layers.2.foo.weight")));
}

TEST(MakeModel, UnusedWeightsAreAllowedWithoutStrict) {
  auto checkpoint = tiny();
  checkpoint.weights.insert_or_assign("foo", mx::zeros({2}));
  EXPECT_NE(make_model(std::move(checkpoint), {.strict = false}), nullptr);
}

TEST(MakeModel, TiedHeadsAndRotaryTablesAreDropped) {
  auto checkpoint = tiny();
  checkpoint.weights.insert_or_assign("lm_head.weight", mx::zeros({260, 64}));
  checkpoint.weights.insert_or_assign(
      "model.layers.0.self_attn.rotary_emb.inv_freq", mx::zeros({8}));
  EXPECT_EQ(logits_of(*make_model(std::move(checkpoint)), {1, 2, 3}),
            logits_of(*make_model(tiny()), {1, 2, 3}));
}

TEST(MakeModel, QuantizedShapesThatCantBeAreRefused) {
  auto checkpoint = tiny();
  checkpoint.quantized["model.layers.0.mlp.up_proj"] = {48, 4, "affine"};
  checkpoint.quantized["model.layers.1.mlp.up_proj"] = {32, 0, "affine"};
  checkpoint.quantized["model.embed_tokens"] = {32, 4, "affine"};
  auto message = fault(std::move(checkpoint), ErrorKind::weights);
  EXPECT_THAT(message, HasSubstr("groups of 48"));
  EXPECT_THAT(message, HasSubstr("with 0 bits"));
  EXPECT_THAT(message, HasSubstr("model.embed_tokens.scales"));
  EXPECT_THAT(message, HasSubstr("uint32 [260, 8]"));
}

TEST(MakeModel, ConfigurationFaultsNameTheField) {
  EXPECT_THAT(config_fault({{"num_attention_heads", 0}}),
              HasSubstr("num_attention_heads must be"));
  EXPECT_THAT(config_fault({{"hidden_size", nullptr}}),
              HasSubstr("hidden_size is missing"));
  EXPECT_THAT(config_fault({{"num_key_value_heads", 3}}),
              HasSubstr("divisor of num_attention_heads = 4"));
  EXPECT_THAT(config_fault({{"num_hidden_layers", 1000000000}}),
              HasSubstr("num_hidden_layers must be"));
  EXPECT_THAT(config_fault({{"vocab_size", "many"}}),
              HasSubstr("vocab_size must be"));
  EXPECT_THAT(config_fault({{"layer_types", {"full_attention"}}}),
              HasSubstr("num_hidden_layers = 2"));
  EXPECT_THAT(
      config_fault({{"layer_types", {"sliding_attention", "full_attention"}}}),
      HasSubstr("sliding_window"));
  EXPECT_THAT(config_fault({{"layer_types", {"full_attention", "mamba"}}},
                           ErrorKind::unsupported),
              HasSubstr("\"mamba\""));
  EXPECT_THAT(config_fault({{"rope_scaling", {{"type", "spiral"}}}},
                           ErrorKind::unsupported),
              HasSubstr("\"spiral\""));
  EXPECT_THAT(config_fault({{"rope_scaling", {{"type", "linear"}}}}),
              HasSubstr("rope_scaling.factor is missing"));
  EXPECT_THAT(config_fault({{"rope_theta", -1}}), HasSubstr("rope_theta"));
}

std::vector<std::string> kinds(const PromptCache& cache) {
  std::vector<std::string> names;
  for (const auto& layer : cache) names.emplace_back(layer->kind());
  return names;
}

TEST(Decoder, CachesFollowTheLayers) {
  auto checkpoint = tiny();
  checkpoint.config.update(
      {{"layer_types", {"sliding_attention", "full_attention"}},
       {"sliding_window", 8}});
  auto model = make_model(std::move(checkpoint));
  EXPECT_THAT(kinds(model->make_cache()),
              ElementsAre("RotatingKVCache", "KVCache"));
  // llama chooses its caches itself.
  EXPECT_THAT(kinds(model->make_cache(16)),
              ElementsAre("RotatingKVCache", "KVCache"));
  auto smollm = tiny();
  smollm.config["model_type"] = "smollm3";
  auto without_own = make_model(std::move(smollm));
  EXPECT_THAT(kinds(without_own->make_cache()),
              ElementsAre("KVCache", "KVCache"));
  EXPECT_THAT(kinds(without_own->make_cache(16)),
              ElementsAre("RotatingKVCache", "RotatingKVCache"));
}

TEST(Decoder, EmbeddingsInsteadOfTokens) {
  auto model = make_model(tiny());
  auto tokens = mx::array({5, 6, 7}, {1, 3});
  auto expected = model->forward(tokens);
  auto actual = model->forward(tokens, {}, model->embed(tokens));
  EXPECT_TRUE(mx::array_equal(actual, expected).item<bool>());
}

TEST(Decoder, TellsWhatItIs) {
  auto checkpoint = tiny();
  checkpoint.config["eos_token_id"] = {3, 4};
  auto model = make_model(std::move(checkpoint));
  EXPECT_EQ(model->model_type(), "llama");
  EXPECT_EQ(model->num_layers(), 2);
  EXPECT_EQ(model->vocabulary_size(), 260);
  EXPECT_EQ(model->context_tokens(), 512);
  EXPECT_THAT(model->eos_token_ids(), ElementsAre(3, 4));
  EXPECT_EQ(model->parameters().size(), tiny_weights().size());
}

TEST(Decoder, RefusesACacheOfAnotherModel) {
  auto model = make_model(tiny());
  auto cache = make_model(tiny({.num_layers = 3}))->make_cache();
  try {
    model->forward(mx::array({1}, {1, 1}), cache);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::argument);
    EXPECT_THAT(error.what(), HasSubstr("3 layers"));
  }
}

TEST(LoadModel, QuantizedFoldersOfEveryMode) {
  for (auto [mode, bits, group] : {std::tuple{"affine", 4, 32},
                                   {"affine", 8, 64},
                                   {"mxfp4", 4, 32},
                                   {"nvfp4", 4, 16}}) {
    TemporaryFolder folder;
    write_tiny_model(
        folder.path(),
        {.quantize_bits = bits, .group_size = group, .mode = mode});
    auto model = load_model(folder.path().string());
    for (float value : logits_of(*model, {1, 2, 3})) {
      ASSERT_TRUE(std::isfinite(value)) << mode << bits;
    }
  }
}

}  // namespace
}  // namespace mlxlm
