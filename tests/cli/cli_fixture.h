// Runs mlx-lm on a tiny model, in surroundings of its own.
#pragma once

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "tests/support/model_writer.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {

class CliTest : public ::testing::Test {
 protected:
  // Writes the model into the folder model().
  void write_model(const TinyModel& model = {});
  // The same, a mimo with a draft head.
  void write_model_with_head();
  std::string model() const { return (folder_ / "model").string(); }
  std::string path(const std::string& name) const {
    return (folder_ / name).string();
  }

  // The program with these arguments, and a time limit.
  std::vector<std::string> command(std::vector<std::string> arguments) const;
  // The model writes visible text for ever, in a cache that doesn't grow.
  std::vector<std::string> endless_command() const;
  ProcessOptions process_options(const std::string& input = "") const;
  ProcessResult run(const std::vector<std::string>& arguments,
                    const std::string& input = "") const;

  // "generate" on the model with further arguments; greedy.
  ProcessResult generate(const std::vector<std::string>& arguments,
                         const std::string& input = "") const;
  // The object that a successful command prints.
  static nlohmann::json json_of(const ProcessResult& result);

  std::map<std::string, std::string> environment_;
  TemporaryFolder folder_;
};

// The one line on standard error, nothing on standard output, exit code 1 (or
// `exit_code`).
::testing::Matcher<const ProcessResult&> FailsWith(
    const ::testing::Matcher<const std::string&>& message, int exit_code = 1);

}  // namespace mlxlm
