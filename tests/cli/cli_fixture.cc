#include "tests/cli/cli_fixture.h"

#include <filesystem>

#include <mlx/mlx.h>

#include "models/random_checkpoint.h"

namespace mlxlm {

using ::testing::AllOf;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

void CliTest::write_model(const TinyModel& model) {
  std::filesystem::remove_all(folder_ / "model");
  std::filesystem::create_directory(folder_ / "model");
  write_tiny_model(folder_ / "model", model);
}

void CliTest::write_model_with_head() {
  write_model();
  auto config = tiny_config();
  config["model_type"] = "mimo";
  auto checkpoint = random_checkpoint(config, 1);
  auto layer = config;
  layer["num_hidden_layers"] = 1;
  add_draft_head(checkpoint, random_checkpoint(layer, 2), draft_head_of_mimo());
  mlx::core::save_safetensors(
      model() + "/model.safetensors", checkpoint.weights, {{"format", "mlx"}});
  write_text(model() + "/config.json", config.dump());
}

std::vector<std::string> CliTest::command(
    std::vector<std::string> arguments) const {
  arguments.insert(arguments.begin(), MLXLM_PROGRAM);
  return arguments;
}

std::vector<std::string> CliTest::endless_command() const {
  return command({"generate",
                  "--model",
                  model(),
                  "--tokens",
                  "1,2",
                  "--ignore-eos",
                  "-m",
                  "-1",
                  "--max-kv-size",
                  "16",
                  "--logit-bias",
                  "65:1000"});
}

ProcessOptions CliTest::process_options(const std::string& input) const {
  ProcessOptions options;
  options.input = input;
  // Nothing of the user's is read, nothing is downloaded.
  options.environment = {{"HOME", folder_.path().string()},
                         {"XDG_CACHE_HOME", path("cache")},
                         {"HF_HOME", path("hf")},
                         {"HF_HUB_CACHE", path("hf/hub")},
                         {"HF_HUB_OFFLINE", "1"},
                         {"HF_TOKEN", ""},
                         {"MLX_LM_MODELS_DIR", path("models")},
                         {"MLX_LM_MEMORY_LIMIT", "none"}};
  for (const auto& [name, value] : environment_) {
    options.environment[name] = value;
  }
  return options;
}

ProcessResult CliTest::run(const std::vector<std::string>& arguments,
                           const std::string& input) const {
  return run_process(command(arguments), process_options(input));
}

ProcessResult CliTest::generate(const std::vector<std::string>& arguments,
                                const std::string& input) const {
  std::vector<std::string> words = {"generate", "--model", model()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return run(words, input);
}

nlohmann::json CliTest::json_of(const ProcessResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  nlohmann::json value =
      nlohmann::json::parse(result.output, nullptr, /*allow_exceptions=*/false);
  EXPECT_TRUE(value.is_object()) << result.output;
  return value.is_object() ? value : nlohmann::json::object();
}

::testing::Matcher<const ProcessResult&> FailsWith(
    const ::testing::Matcher<const std::string&>& message, int exit_code) {
  return AllOf(Field("exit_code", &ProcessResult::exit_code, exit_code),
               Field("output", &ProcessResult::output, IsEmpty()),
               Field("errors",
                     &ProcessResult::errors,
                     AllOf(HasSubstr("mlx-lm: error: "),
                           Not(HasSubstr("terminate called")),
                           message)));
}

}  // namespace mlxlm
