// The program mlx-lm: picks the command, runs it, turns faults into messages
// and exit codes.
#pragma once

#include <string>
#include <vector>

namespace mlxlm::cli {

enum ExitCode {
  kSuccess = 0,
  kFailure = 1,
  kUsage = 2,
  kInterrupted = 130,   // as a shell reports SIGINT
  kOutputClosed = 141,  // as a shell reports SIGPIPE
};

// arguments[0] is the program's own name. No exception leaves it.
int run(std::vector<std::string> arguments);

}  // namespace mlxlm::cli
