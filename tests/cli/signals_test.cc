// Ctrl-C and closed pipes, on a model that would write for ever.
#include <csignal>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class CliSignals : public CliTest {
 protected:
  void SetUp() override {
    write_model({.num_layers = 1});
    endless_ = endless_command();
  }

  std::vector<std::string> endless_;
};

TEST_F(CliSignals, ControlCStopsGeneration) {
  Process process(endless_, process_options());
  // The frame's line comes before the first token, the text after it.
  std::string output;
  while (output.find('A') == std::string::npos) {
    std::string more = process.read_some();
    ASSERT_FALSE(more.empty());
    output += more;
  }
  process.send(SIGINT);
  ProcessResult result = process.finish();
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_EQ(result.errors, "");
  EXPECT_THAT(result.output, Not(HasSubstr("tokens-per-sec")));
}

TEST_F(CliSignals, ControlCWithJsonPrintsNothing) {
  endless_.insert(endless_.end(), {"--json"});
  Process process(endless_, process_options());
  // There is no sign of life to wait for: whatever it does, it must stop.
  process.send(SIGINT);
  ProcessResult result = process.finish();
  // 130 by its own handler, or by the signal before there was one.
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_EQ(result.output, "");
}

TEST_F(CliSignals, AClosedPipeEndsQuietly) {
  Process process(endless_, process_options());
  ASSERT_FALSE(process.read_some().empty());
  process.close_output();
  ProcessResult result = process.finish();
  EXPECT_EQ(result.exit_code, 141);
  EXPECT_EQ(result.errors, "");
}

TEST_F(CliSignals, APipeClosedFromTheStart) {
  Process process(command({"--help"}), process_options());
  process.close_output();
  ProcessResult result = process.finish();
  // 0 if the help was written before the pipe was closed.
  EXPECT_THAT(result.exit_code, ::testing::AnyOf(0, 141));
  EXPECT_EQ(result.errors, "");
}

TEST_F(CliSignals, AFullDeviceIsAnError) {
  std::vector<std::string> shell = {
      "/bin/sh", "-c", std::string(MLXLM_PROGRAM) + " --help > /dev/full"};
  ProcessResult result = run_process(shell, process_options());
#ifdef __linux__
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.errors, HasSubstr("cannot write to standard output"));
#endif
}

}  // namespace
}  // namespace mlxlm
