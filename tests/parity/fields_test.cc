// Every field that the reference's model arguments have is asked for here, so
// that none is silently ignored.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "models/family.h"

namespace mlxlm::parity {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Of training, of other parts of the program or of the model's eyes, or read by
// the reference and used nowhere.
constexpr const char* kWithoutEffect[] = {"attention_dropout",
                                          "image_feature_size",
                                          "image_proj_type",
                                          "image_token_id",
                                          "model_type",
                                          "moe_capacity",
                                          "moe_router_enable_routed_scaling",
                                          "moe_use_aux_free",
                                          "num_nextn_predict_layers",
                                          "pad_token_id",
                                          "quantization",
                                          "text_config.model_type",
                                          "time_step_rank"};

json read_json(const fs::path& path) {
  std::ifstream file(path);
  return json::parse(file);
}

// The fields that the configuration lacks with the reference's defaults.
void complete(json& config, const json& defaults) {
  for (const auto& [field, value] : defaults.items()) {
    if (field == "text_config" && value.is_object()) {
      complete(config[field], value);
    } else if (!config.contains(field)) {
      config[field] = value;
    }
  }
}

// "a", "text_config.b".
std::set<std::string> names_of(const json& defaults,
                               const std::string& prefix = "") {
  std::set<std::string> names;
  for (const auto& [field, value] : defaults.items()) {
    if (field == "text_config" && value.is_object()) {
      names.merge(names_of(value, field + "."));
    } else {
      names.insert(prefix + field);
    }
  }
  return names;
}

// Those of `fields` that this configuration's family doesn't ask for.
std::set<std::string> unread_of(const Family& family,
                                const json& config,
                                const std::set<std::string>& fields) {
  Checkpoint checkpoint{.config = config};
  const ConfigReader reader(checkpoint.config);
  family.make_spec(reader, checkpoint);
  std::set<std::string> unread;
  for (const auto& field : reader.unread()) {
    for (const auto& name : fields) {
      // An object that wasn't entered stands for what is in it.
      if (name == field || name.starts_with(field + ".")) unread.insert(name);
    }
  }
  return unread;
}

TEST(Fields, AreAllRead) {
  const char* models = std::getenv("MLXLM_PARITY_MODELS");
  const auto arguments =
      fs::path(models ? models : "").parent_path() / "arguments";
  if (models == nullptr || !fs::is_directory(arguments)) {
    GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set or has no models";
  }
  int num_checked = 0;
  for (const auto& family : families()) {
    const std::string name(family.model_type);
    const auto path = arguments / (name + ".json");
    if (!fs::exists(path) || !fs::exists(fs::path(models) / name)) continue;
    const json defaults = read_json(path);
    const auto fields = names_of(defaults);
    // Some are asked for only where others have certain values.
    std::set<std::string> ignored = fields;
    for (const auto& variant :
         fs::directory_iterator(fs::path(models) / name)) {
      json config = read_json(variant.path() / "config.json");
      complete(config, defaults);
      const auto unread = unread_of(family, config, fields);
      std::erase_if(ignored,
                    [&](const auto& f) { return !unread.contains(f); });
    }
    for (const char* harmless : kWithoutEffect) ignored.erase(harmless);
    EXPECT_THAT(ignored, testing::IsEmpty()) << name;
    ++num_checked;
  }
  EXPECT_GE(num_checked, 90);
}

// The list of model types says what the visible configurations make.
TEST(Fields, TraitsAreTheModels) {
  const char* models = std::getenv("MLXLM_PARITY_MODELS");
  if (models == nullptr) GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set";
  for (const auto& family : families()) {
    const auto path =
        fs::path(models) / family.model_type / "visible" / "config.json";
    if (!fs::exists(path)) continue;
    Checkpoint checkpoint{.config = read_json(path)};
    const auto spec =
        family.make_spec(ConfigReader(checkpoint.config), checkpoint);
    const auto traits = traits_of(spec);
    EXPECT_EQ(layers_text(family.traits), layers_text(traits))
        << family.model_type;
    EXPECT_EQ(caches_text(family.traits), caches_text(traits))
        << family.model_type;
    EXPECT_EQ(family.traits, traits) << family.model_type;
  }
}

}  // namespace
}  // namespace mlxlm::parity
