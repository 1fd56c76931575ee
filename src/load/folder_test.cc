#include "load/folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "core/json.h"
#include "tests/support/environment.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string error_of(const fs::path& folder,
                     ErrorKind kind,
                     const LoadOptions& options = {}) {
  try {
    load_folder_checkpoint(folder, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

void expect_holds(const Weights& weights, const TinyModel& model) {
  auto expected = tiny_weights(model);
  ASSERT_EQ(weights.size(), expected.size());
  for (const auto& [name, value] : expected) {
    ASSERT_TRUE(weights.contains(name)) << name;
    EXPECT_TRUE(mx::array_equal(weights.at(name), value).item<bool>()) << name;
  }
}

TEST(Folder, LoadsOneFileAndShards) {
  for (int num_shards : {1, 3}) {
    TemporaryFolder folder;
    TinyModel model{.num_shards = num_shards};
    write_tiny_model(folder.path(), model);
    Checkpoint loaded = load_folder_checkpoint(folder.path(), {});
    expect_holds(loaded.weights, model);
    EXPECT_TRUE(loaded.quantized.empty());
    EXPECT_TRUE(loaded.generation_config.is_null());
    EXPECT_EQ(loaded.config["model_type"], "llama");
    EXPECT_EQ(loaded.source, folder.path().string());
  }
}

TEST(Folder, LoadsQuantizedWeights) {
  TemporaryFolder folder;
  TinyModel model{.quantize_bits = 8, .mode = "mxfp8"};
  write_tiny_model(folder.path(), model);
  Checkpoint loaded = load_folder_checkpoint(folder.path(), {});
  expect_holds(loaded.weights, model);
  EXPECT_EQ(loaded.quantized.size(), 15u);
  EXPECT_EQ(loaded.quantized.at("model.layers.1.mlp.down_proj"),
            (Quantization{32, 8, "mxfp8"}));
}

TEST(Folder, OverridesReplaceFieldsOfTheConfig) {
  TemporaryFolder folder;
  write_tiny_model(folder.path());
  Checkpoint loaded = load_folder_checkpoint(
      folder.path(), {.config_overrides = R"({"rope_theta": 5})"});
  EXPECT_EQ(loaded.config["rope_theta"], 5);
  EXPECT_THAT(
      error_of(folder.path(), ErrorKind::argument, {.config_overrides = "{"}),
      HasSubstr("configuration override"));
}

TEST(Folder, WithoutConfigSaysWhatItMayBe) {
  TemporaryFolder folder;
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              HasSubstr("has no config.json, so it is no model folder"));
  fs::create_directory(folder / "inner");
  write_text(folder / "inner" / "config.json", "{}");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              AllOf(HasSubstr("did you mean"), HasSubstr("inner?")));
  write_text(folder / "adapter_config.json", "{}");
  fs::remove_all(folder / "inner");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              HasSubstr("it is an adapter"));
  write_text(folder / "m.gguf", "");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              HasSubstr("it holds m.gguf: name that file"));
}

TEST(Folder, WithoutWeightsSaysWhatItHolds) {
  TemporaryFolder folder;
  write_text(folder / "config.json", "{}");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              HasSubstr("has no model*.safetensors"));
  EXPECT_TRUE(
      load_folder_checkpoint(folder.path(), {.strict = false}).weights.empty());
  write_text(folder / "pytorch_model.bin", "");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              HasSubstr("it holds pytorch_model.bin, which can't be read: "
                        "convert the model to safetensors"));
  write_text(folder / "weights.safetensors", "");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              HasSubstr("it holds weights.safetensors, but weights are looked "
                        "for in model*.safetensors"));
  write_text(folder / "m.gguf", "");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file), HasSubstr("m.gguf"));
}

TEST(Folder, NamesMissingShards) {
  TemporaryFolder folder;
  write_tiny_model(folder.path(), {.num_shards = 3});
  fs::remove(folder / "model-00002-of-00003.safetensors");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              AllOf(HasSubstr("lacks model-00002-of-00003.safetensors, which "
                              "model.safetensors.index.json names for"),
                    HasSubstr("download the model again")));
  fs::remove(folder / "model.safetensors.index.json");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::file),
              HasSubstr("lacks model-00002-of-00003.safetensors;"));
}

TEST(Folder, AnIndexOlderThanTheWeightsIsIgnored) {
  TemporaryFolder folder;
  write_tiny_model(folder.path(), {.num_shards = 2});
  for (const char* name : {"model-00001-of-00002.safetensors",
                           "model-00002-of-00002.safetensors"}) {
    fs::remove(folder / name);
  }
  fs::rename(folder / "model.safetensors.index.json", folder / "kept.json");
  write_tiny_model(folder.path());
  fs::rename(folder / "kept.json", folder / "model.safetensors.index.json");
  expect_holds(load_folder_checkpoint(folder.path(), {}).weights, {});
}

TEST(Folder, TheIndexMayNameOtherFiles) {
  TemporaryFolder folder;
  write_tiny_model(folder.path(), {.num_shards = 2});
  fs::rename(folder / "model-00001-of-00002.safetensors",
             folder / "first.safetensors");
  json index = read_json_file(folder / "model.safetensors.index.json");
  for (json& file : index["weight_map"]) {
    if (file == "model-00001-of-00002.safetensors") {
      file = "first.safetensors";
    }
  }
  write_text(folder / "model.safetensors.index.json", index.dump());
  expect_holds(load_folder_checkpoint(folder.path(), {}).weights,
               {.num_shards = 2});
  EXPECT_THAT(find_weight_files(folder.path()),
              ElementsAre(folder / "first.safetensors",
                          folder / "model-00002-of-00002.safetensors"));
}

TEST(Folder, FaultsOfTheIndex) {
  TemporaryFolder folder;
  write_tiny_model(folder.path());
  auto index = folder / "model.safetensors.index.json";
  for (const char* name : {"../x.safetensors", "/etc/passwd", "", ".."}) {
    write_text(index, json({{"weight_map", {{"a", name}}}}).dump());
    EXPECT_THAT(error_of(folder.path(), ErrorKind::format),
                HasSubstr("weight_map.a must be a file name"));
  }
  write_text(index, R"({"weight_map": {"a": 3}})");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::format), HasSubstr("not 3"));
  write_text(index, R"({"weight_map": []})");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::format),
              HasSubstr("has no object \"weight_map\""));
  write_text(index, "{");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::format),
              HasSubstr("index.json is not valid JSON"));
}

TEST(Folder, ATensorInTwoFilesIsRefused) {
  TemporaryFolder folder;
  write_tiny_model(folder.path());
  fs::copy(folder / "model.safetensors", folder / "model_copy.safetensors");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::weights),
              HasSubstr("is in both model.safetensors and "
                        "model_copy.safetensors"));
}

TEST(Folder, ATruncatedFileIsRefusedBeforeItIsRead) {
  TemporaryFolder folder;
  write_tiny_model(folder.path());
  auto path = folder / "model.safetensors";
  fs::resize_file(path, fs::file_size(path) - 1);
  EXPECT_THAT(error_of(folder.path(), ErrorKind::format),
              AllOf(HasSubstr("model.safetensors"), HasSubstr("cut short")));
}

TEST(Folder, WhatCannotRunIsRefusedWithTheReason) {
  TemporaryFolder folder;
  write_tiny_model(folder.path(),
                   {.config_changes = {{"model_file", "my_model.py"}}});
  EXPECT_THAT(error_of(folder.path(), ErrorKind::unsupported),
              AllOf(HasSubstr("its own Python code"),
                    HasSubstr("model_file is \"my_model.py\"")));
  write_tiny_model(folder.path(),
                   {.config_changes = {{"quantize_activations", true}}});
  EXPECT_THAT(error_of(folder.path(), ErrorKind::unsupported),
              HasSubstr("quantize_activations"));
}

TEST(Folder, AModelLargerThanMemoryIsRefusedBeforeItIsRead) {
  TemporaryFolder folder;
  write_tiny_model(folder.path());
  ScopedVariable limit("MLX_LM_MEMORY_LIMIT", "100k");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::memory),
              AllOf(HasSubstr("loading " + folder.path().string()),
                    HasSubstr("MLX_LM_MEMORY_LIMIT leaves 100 kB")));
  EXPECT_EQ(error_of(folder.path(), ErrorKind::memory, {.lazy = true}),
            "no error");
}

TEST(Folder, Float8WithoutScalesIsRefused) {
  TemporaryFolder folder;
  write_text(folder / "config.json", "{}");
  std::string header =
      R"({"a.weight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})";
  std::string length(8, '\0');
  length[0] = static_cast<char>(header.size());
  write_text(folder / "model.safetensors", length + header + "xx");
  EXPECT_THAT(error_of(folder.path(), ErrorKind::weights),
              HasSubstr("a.weight: holds 8-bit floats without a scale"));
}

}  // namespace
}  // namespace mlxlm
