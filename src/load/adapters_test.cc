#include "load/adapters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

json lora_config() {
  return json::parse(R"({"fine_tune_type": "lora", "num_layers": 2,
      "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0,
                          "keys": ["self_attn.q_proj", "lm_head"]}})");
}

mx::array zeros(mx::Shape shape) { return mx::zeros(shape); }

Weights lora_tensors(const std::string& path, int in, int out) {
  return {{path + ".lora_a", zeros({in, 4})},
          {path + ".lora_b", zeros({4, out})}};
}

Adapter load(const TemporaryFolder& folder,
             const json& config,
             const Weights& tensors) {
  write_text(folder / "adapter_config.json", config.dump());
  mx::save_safetensors((folder / "adapters.safetensors").string(), tensors);
  return load_adapter(folder.path().string());
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

// Four layers of a model 8 wide, with 10 words.
std::map<std::string, AdapterTarget> targets() {
  using Kind = AdapterTarget::Kind;
  std::map<std::string, AdapterTarget> out = {
      {"model.embed_tokens", {Kind::embedding, 10, 8, 0}},
      {"lm_head", {Kind::linear, 10, 8, 0}}};
  for (int i = 0; i < 4; ++i) {
    std::string layer = "model.layers." + std::to_string(i) + ".";
    out[layer + "self_attn.q_proj"] = {Kind::linear, 16, 8, 0};
    out[layer + "mlp.switch_mlp.up_proj"] = {Kind::experts, 12, 8, 3};
  }
  return out;
}

TEST(Adapter, ReadsLora) {
  TemporaryFolder folder;
  Weights tensors = lora_tensors("model.layers.3.self_attn.q_proj", 8, 16);
  tensors.merge(lora_tensors("lm_head", 8, 10));
  Adapter adapter = load(folder, lora_config(), tensors);
  EXPECT_EQ(adapter.kind, AdapterKind::lora);
  EXPECT_EQ(adapter.rank, 4);
  EXPECT_EQ(adapter.scale, 20.0f);
  EXPECT_EQ(adapter.modules.size(), 2u);
  EXPECT_EQ(adapter.modules.at("lm_head").b->shape(), (mx::Shape{4, 10}));
  EXPECT_NO_THROW(check_adapter(adapter, targets(), 4));
}

TEST(Adapter, ReadsDoraWithEmbeddings) {
  TemporaryFolder folder;
  json config = lora_config();
  config["fine_tune_type"] = "dora";
  config["lora_parameters"]["keys"] = {"model.embed_tokens"};
  Weights tensors = lora_tensors("model.embed_tokens", 10, 8);
  EXPECT_THAT(
      error_of(ErrorKind::weights, [&] { load(folder, config, tensors); }),
      HasSubstr("model.embed_tokens: has no magnitude m"));
  tensors.emplace("model.embed_tokens.m", zeros({10}));
  Adapter adapter = load(folder, config, tensors);
  EXPECT_EQ(adapter.kind, AdapterKind::dora);
  EXPECT_NO_THROW(check_adapter(adapter, targets(), 4));
}

TEST(Adapter, WithoutKeysEveryLayerMayBeAdapted) {
  TemporaryFolder folder;
  json config = lora_config();
  config["lora_parameters"].erase("keys");
  config["num_layers"] = -1;
  Weights tensors = lora_tensors("model.layers.0.self_attn.q_proj", 8, 16);
  std::string experts = "model.layers.1.mlp.switch_mlp.up_proj";
  tensors.emplace(experts + ".lora_a", zeros({3, 4, 8}));
  tensors.emplace(experts + ".lora_b", zeros({3, 12, 4}));
  EXPECT_NO_THROW(check_adapter(load(folder, config, tensors), targets(), 4));
}

TEST(Adapter, ListsEveryFaultAtOnce) {
  TemporaryFolder folder;
  Weights tensors = lora_tensors("model.layers.3.self_attn.q_proj", 8, 15);
  tensors.merge(lora_tensors("model.layers.1.self_attn.q_proj", 8, 16));
  tensors.merge(lora_tensors("model.layers.3.mlp.switch_mlp.up_proj", 8, 12));
  tensors.merge(lora_tensors("model.layers.3.self_attn.q_prj", 8, 16));
  tensors.merge(lora_tensors("lm_head", 8, 10));
  Adapter adapter = load(folder, lora_config(), tensors);
  EXPECT_THAT(
      error_of(ErrorKind::weights,
               [&] { check_adapter(adapter, targets(), 4); }),
      AllOf(HasSubstr("model.layers.3.self_attn.q_proj.lora_b: is [4, 15], but "
                      "the model needs [4, 16]"),
            HasSubstr("model.layers.1.self_attn.q_proj: isn't among the keys "
                      "and the last 2 layers"),
            HasSubstr("up_proj: isn't among the keys"),
            HasSubstr("q_prj: is no layer of the model (nearest: "
                      "model.layers.3.self_attn.q_proj)"),
            Not(HasSubstr("lm_head"))));
}

TEST(Adapter, PartsMustBeWhole) {
  TemporaryFolder folder;
  Weights tensors;
  tensors.emplace("x.lora_a", zeros({8, 4}));
  tensors.emplace("y.lora_b", zeros({8, 4}));
  tensors.emplace("z.weight", zeros({8, 4}));
  tensors.emplace("z.m", zeros({8}));
  tensors.emplace("lora_a", zeros({8}));
  EXPECT_THAT(error_of(ErrorKind::weights,
                       [&] { load(folder, lora_config(), tensors); }),
              AllOf(HasSubstr("x: has lora_a, but no lora_b"),
                    HasSubstr("y: has no lora_a"),
                    HasSubstr("z.weight: is no adapter tensor"),
                    HasSubstr("z.m: is no adapter tensor"),
                    HasSubstr("lora_a: is no adapter tensor")));
}

TEST(Adapter, FullFineTuningReplacesParameters) {
  TemporaryFolder folder;
  Weights tensors = {{"a.weight", zeros({2, 3})}};
  Adapter adapter = load(folder, {{"fine_tune_type", "full"}}, tensors);
  EXPECT_EQ(adapter.kind, AdapterKind::full);
  EXPECT_EQ(adapter.tensors.size(), 1u);
  EXPECT_NO_THROW(check_full_adapter(adapter, tensors));
  EXPECT_THAT(
      error_of(ErrorKind::weights,
               [&] {
                 check_full_adapter(adapter, {{"a.weight", zeros({2, 4})}});
               }),
      HasSubstr("a.weight: is [2, 3], but the model needs [2, 4]"));
  EXPECT_THAT(
      error_of(ErrorKind::weights, [&] { check_full_adapter(adapter, {}); }),
      HasSubstr("a.weight: is no parameter of the model"));
}

TEST(Adapter, ConfigFaults) {
  TemporaryFolder folder;
  auto error = [&](const char* changes) {
    json config = lora_config();
    config.merge_patch(json::parse(changes));
    return error_of(ErrorKind::config, [&] {
      load(folder, config, lora_tensors("lm_head", 8, 10));
    });
  };
  EXPECT_THAT(
      error(R"({"lora_parameters": {"scale": null, "alpha": 16}})"),
      AllOf(HasSubstr("lora_parameters.scale is missing"), HasSubstr("alpha")));
  EXPECT_THAT(error(R"({"lora_parameters": {"rank": 0}})"),
              HasSubstr("lora_parameters.rank must be a positive integer"));
  EXPECT_THAT(error(R"({"fine_tune_type": "qlora"})"),
              HasSubstr("fine_tune_type must be lora, dora or full"));
  EXPECT_THAT(error(R"({"num_layers": null})"),
              HasSubstr("num_layers is missing"));
  EXPECT_THAT(error(R"({"lora_parameters": null})"),
              HasSubstr("lora_parameters is missing"));
}

TEST(Adapter, MissingFiles) {
  TemporaryFolder folder;
  auto error = [&](const std::string& path) {
    return error_of(ErrorKind::file, [&] { load_adapter(path); });
  };
  EXPECT_THAT(error((folder / "none").string()),
              HasSubstr("there is no adapter folder"));
  EXPECT_THAT(error(folder.path().string()),
              HasSubstr("has no adapter_config.json"));
  write_text(folder / "adapter_config.json", "{}");
  write_text(folder / "adapter_model.safetensors", "");
  EXPECT_THAT(
      error(folder.path().string()),
      AllOf(HasSubstr("has no adapters.safetensors"), HasSubstr("PEFT")));
}

}  // namespace
}  // namespace mlxlm
