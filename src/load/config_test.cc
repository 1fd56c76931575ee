#include "load/config.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "core/file.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

template <typename Function>
std::string config_error(Function function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::config);
    return error.what();
  }
  return "no error";
}

TEST(ConfigReader, GivesTypedFields) {
  json config = json::parse(R"({"width": 8, "whole": 4.0, "eps": 1e-5,
      "tied": true, "name": "llama", "none": null, "layers": [1, 2],
      "eos": 7, "flags": [0, 1, true], "factors": [1, 2.5],
      "types": ["full", "sliding"], "rope": {"factor": 2}})");
  ConfigReader reader(config);
  EXPECT_EQ(reader.require_int("width"), 8);
  EXPECT_EQ(reader.require_int("whole"), 4);
  EXPECT_EQ(reader.require_float("eps"), 1e-5);
  EXPECT_EQ(reader.require_float("width"), 8.0);
  EXPECT_TRUE(reader.require_bool("tied"));
  EXPECT_EQ(reader.require_string("name"), "llama");
  EXPECT_EQ(reader.get_int("none", 3), 3);
  EXPECT_EQ(reader.get_float("missing", 0.5), 0.5);
  EXPECT_EQ(reader.get_string("missing", "x"), "x");
  EXPECT_FALSE(reader.get_bool("missing", false));
  EXPECT_FALSE(reader.has("none"));
  EXPECT_EQ(reader.find_ints("layers"), (std::vector<int>{1, 2}));
  EXPECT_EQ(reader.find_ints("eos"), std::vector<int>{7});
  EXPECT_EQ(reader.find_bools("flags"), (std::vector<bool>{false, true, true}));
  EXPECT_EQ(reader.find_floats("factors"), (std::vector<double>{1, 2.5}));
  EXPECT_EQ(reader.find_strings("types")->at(1), "sliding");
  EXPECT_EQ(reader.require_object("rope").require_int("factor"), 2);
  EXPECT_EQ(reader.find_object("missing"), std::nullopt);
}

TEST(ConfigReader, ErrorsNameFieldFoundAndWanted) {
  json config = json::parse(R"({"heads": "x", "zero": 0, "huge": 1e20,
      "big": 18446744073709551615, "half": 1.5, "list": [1, "a"], "s": 1,
      "rope": {"factor": true}, "flag": 1})");
  ConfigReader reader(config);
  EXPECT_EQ(config_error([&] { reader.require_int("heads"); }),
            "config.json: heads must be a positive integer, not \"x\"");
  EXPECT_EQ(config_error([&] { reader.require_int("zero"); }),
            "config.json: zero must be a positive integer, not 0");
  EXPECT_EQ(config_error([&] { reader.require_int("none"); }),
            "config.json: none is missing; it must be a positive integer");
  EXPECT_THAT(config_error([&] { reader.require_int("huge"); }),
              HasSubstr("not 1e+20"));
  EXPECT_THAT(config_error([&] { reader.require_int("big"); }),
              HasSubstr("not 18446744073709551615"));
  EXPECT_THAT(config_error([&] { reader.require_int("half"); }),
              HasSubstr("not 1.5"));
  EXPECT_THAT(config_error([&] { reader.get_int("s", 4, 2, 8); }),
              HasSubstr("s must be an integer from 2 to 8, not 1"));
  EXPECT_THAT(config_error([&] { reader.find_ints("list"); }),
              HasSubstr("list must be a list of integers"));
  EXPECT_THAT(config_error([&] { reader.require_string("s"); }),
              HasSubstr("s must be text, not 1"));
  EXPECT_THAT(config_error([&] { reader.find_bool("flag"); }),
              HasSubstr("flag must be true or false, not 1"));
  EXPECT_EQ(config_error(
                [&] { reader.require_object("rope").get_float("factor", 1); }),
            "config.json: rope.factor must be a number, not true");
  EXPECT_THAT(config_error([&] { reader.find_object("s"); }),
              HasSubstr("s must be an object, not 1"));
  EXPECT_THAT(config_error([&] { reader.find_strings("list"); }),
              HasSubstr("not a list"));
  json list = json::array();
  EXPECT_THAT(config_error([&] { ConfigReader reader(list); }),
              HasSubstr("must hold a JSON object, not a list"));
}

TEST(ConfigReader, KnowsWhatNobodyRead) {
  json config = json::parse(
      R"({"a": 1, "b": 2, "rope": {"x": 1, "y": 2}, "other": {"z": 1}})");
  ConfigReader reader(config);
  reader.require_int("a");
  reader.require_object("rope").require_int("y");
  reader.find_int("not_there");
  EXPECT_THAT(reader.unread(), ElementsAre("b", "other", "rope.x"));
}

TEST(LoadConfig, GenerationConfigReplacesTheEndOfSequence) {
  TemporaryFolder folder;
  write_file_atomically(folder / "config.json",
                        R"({"eos_token_id": 1, "limit": Infinity})");
  EXPECT_EQ(load_config(folder.path()).config["eos_token_id"], 1);
  EXPECT_TRUE(load_config(folder.path()).generation_config.is_null());
  write_file_atomically(folder / "generation_config.json",
                        R"({"eos_token_id": [2, 3]})");
  ModelConfig loaded = load_config(folder.path());
  EXPECT_EQ(loaded.config["eos_token_id"], json({2, 3}));
  EXPECT_TRUE(std::isinf(loaded.config["limit"].get<double>()));
  EXPECT_TRUE(loaded.generation_config.is_object());
}

TEST(LoadConfig, AGenerationConfigThatSaysNothingChangesNothing) {
  TemporaryFolder folder;
  write_file_atomically(folder / "config.json", R"({"eos_token_id": 1})");
  for (const char* text :
       {"{cut", "[]", R"({"eos_token_id": null})", R"({"eos_token_id": 0})"}) {
    write_file_atomically(folder / "generation_config.json", text);
    EXPECT_EQ(load_config(folder.path()).config["eos_token_id"], 1) << text;
  }
}

TEST(LoadConfig, FaultsNameTheFile) {
  TemporaryFolder folder;
  EXPECT_THROW(load_config(folder.path()), Error);
  write_file_atomically(folder / "config.json", "{\"a\": ");
  EXPECT_THAT(config_error([&] { load_config(folder.path()); }),
              HasSubstr("config.json is not valid JSON"));
  write_file_atomically(folder / "config.json", "3");
  EXPECT_THAT(config_error([&] { load_config(folder.path()); }),
              HasSubstr("must hold a JSON object, not 3"));
  write_file_atomically(folder / "config.json", std::string(100000, '['));
  EXPECT_THAT(config_error([&] { load_config(folder.path()); }),
              HasSubstr("levels deep"));
}

TEST(MergeConfigOverrides, ReplacesTopLevelFields) {
  json config = {{"a", 1}, {"b", {{"c", 1}}}};
  merge_config_overrides(config, "");
  merge_config_overrides(config, R"({"b": {"d": 2}, "e": 3})");
  EXPECT_EQ(config, json::parse(R"({"a": 1, "b": {"d": 2}, "e": 3})"));
  for (const char* text : {"[1]", "{", "x"}) {
    try {
      merge_config_overrides(config, text);
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::argument);
      EXPECT_THAT(error.what(), HasSubstr("configuration override"));
    }
  }
}

}  // namespace
}  // namespace mlxlm
