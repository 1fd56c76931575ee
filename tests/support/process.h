// Child processes: run to the end with their output, or by hand.
//
//   ProcessResult result = run_process({program, "--help"});
#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace mlxlm {

struct ProcessResult {
  int exit_code = -1;  // 128 + the signal's number if a signal ended it
  std::string output;  // standard output
  std::string errors;  // standard error
};

struct ProcessOptions {
  std::string input;                               // on standard input
  std::map<std::string, std::string> environment;  // added or replaced
  std::chrono::seconds time_limit{120};            // then it is killed
  // A pseudo-terminal in place of the three pipes: all output is in `output`,
  // and line ends are "\r\n".
  bool terminal = false;
};

// Throws std::runtime_error if it can't be started or exceeds the time limit.
ProcessResult run_process(const std::vector<std::string>& command,
                          const ProcessOptions& options = {});

// A process with pipes, or a terminal, to talk through.
class Process {
 public:
  explicit Process(const std::vector<std::string>& command,
                   const ProcessOptions& options = {});
  ~Process();  // kills it if it still runs
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Waits until standard output has something and returns it; "" at its end.
  std::string read_some();
  // Waits until standard output has this text, after what was waited for
  // before; returns what came until then. Throws std::runtime_error if it ends
  // without.
  std::string wait_for(const std::string& text);
  // To a terminal.
  void type(const std::string& text);
  void close_output();
  void send(int signal);

  // Reads what is left of both outputs and waits for the end.
  ProcessResult finish();

 private:
  void close_pipe(int& descriptor);
  bool pump(bool until_output);

  pid_t pid_ = -1;
  int input_ = -1;
  int output_ = -1;
  int errors_ = -1;
  int terminal_ = -1;  // to type into
  std::string input_text_;
  std::size_t written_ = 0;
  std::size_t waited_for_ = 0;  // of the output
  std::chrono::steady_clock::time_point deadline_;
  ProcessResult result_;
};

}  // namespace mlxlm
