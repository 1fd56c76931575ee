#include "tests/support/process.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

extern char** environ;

namespace mlxlm {
namespace {

using Clock = std::chrono::steady_clock;

struct Pipe {
  int read = -1;
  int write = -1;
};

Pipe make_pipe() {
  std::array<int, 2> ends;
  if (::pipe(ends.data()) != 0) {
    throw std::runtime_error("pipe failed");
  }
  // Later children must not hold this one's pipes open.
  ::fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  ::fcntl(ends[1], F_SETFD, FD_CLOEXEC);
  return {ends[0], ends[1]};
}

// The two ends of a terminal of 80 columns: read is ours, write the child's.
Pipe make_terminal() {
  int ours = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (ours < 0 || ::grantpt(ours) != 0 || ::unlockpt(ours) != 0) {
    throw std::runtime_error("no pseudo-terminal can be made");
  }
  ::fcntl(ours, F_SETFD, FD_CLOEXEC);
  int theirs = ::open(::ptsname(ours), O_RDWR | O_NOCTTY);
  if (theirs < 0) {
    throw std::runtime_error("the pseudo-terminal can't be opened");
  }
  struct winsize size = {};
  size.ws_row = 24;
  size.ws_col = 80;
  ::ioctl(theirs, TIOCSWINSZ, &size);
  return {ours, theirs};
}

// In the child: its controlling terminal.
void take_terminal(int descriptor) {
  ::setsid();
  ::ioctl(descriptor, TIOCSCTTY, 0);
}

std::vector<std::string> environment_of(const ProcessOptions& options) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    std::string name(*entry, std::strcspn(*entry, "="));
    if (!options.environment.contains(name)) {
      result.emplace_back(*entry);
    }
  }
  for (const auto& [name, value] : options.environment) {
    result.push_back(name + "=" + value);
  }
  return result;
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) {
    pointers.push_back(word.data());
  }
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

Process::Process(const std::vector<std::string>& command,
                 const ProcessOptions& options)
    : input_text_(options.input), deadline_(Clock::now() + options.time_limit) {
  // Everything that allocates happens before the fork.
  std::vector<std::string> words = command;
  std::vector<std::string> environment = environment_of(options);
  std::vector<char*> arguments = pointers_to(words);
  std::vector<char*> variables = pointers_to(environment);
  Pipe terminal;
  Pipe in;
  Pipe out;
  Pipe err;
  if (options.terminal) {
    terminal = make_terminal();
    in.read = out.write = err.write = terminal.write;
    out.read = ::dup(terminal.read);
    ::fcntl(out.read, F_SETFD, FD_CLOEXEC);
  } else {
    in = make_pipe();
    out = make_pipe();
    err = make_pipe();
  }
  pid_ = ::fork();
  if (pid_ == 0) {
    if (options.terminal) {
      take_terminal(terminal.write);
    }
    ::dup2(in.read, STDIN_FILENO);
    ::dup2(out.write, STDOUT_FILENO);
    ::dup2(err.write, STDERR_FILENO);
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGPIPE, SIG_DFL);
    ::execve(arguments[0], arguments.data(), variables.data());
    ::_exit(127);
  }
  ::close(in.read);
  if (!options.terminal) {
    ::close(out.write);
    ::close(err.write);
  }
  terminal_ = terminal.read;
  input_ = in.write;
  output_ = out.read;
  errors_ = err.read;
  if (pid_ < 0) {
    throw std::runtime_error("fork failed");
  }
  // A child that doesn't read its input must not end or block the test.
  std::signal(SIGPIPE, SIG_IGN);
  if (input_ >= 0) {
    ::fcntl(input_, F_SETFL, O_NONBLOCK);
  }
  if (input_text_.empty()) {
    close_pipe(input_);
  }
}

Process::~Process() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  close_pipe(input_);
  close_pipe(output_);
  close_pipe(errors_);
  close_pipe(terminal_);
}

void Process::close_pipe(int& descriptor) {
  if (descriptor >= 0) {
    ::close(descriptor);
    descriptor = -1;
  }
}

void Process::close_output() { close_pipe(output_); }

void Process::send(int signal) { ::kill(pid_, signal); }

// Moves data until both outputs end, or (until_output) some output came.
// False if nothing is left to read.
bool Process::pump(bool until_output) {
  std::size_t before = result_.output.size();
  std::array<char, 1 << 16> block;
  auto drain = [&](int& descriptor, std::string& text) {
    ssize_t count = ::read(descriptor, block.data(), block.size());
    if (count > 0) {
      text.append(block.data(), static_cast<std::size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      close_pipe(descriptor);
    }
  };
  while (output_ >= 0 || errors_ >= 0) {
    if (until_output && (result_.output.size() > before || output_ < 0)) {
      break;
    }
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline_ - Clock::now());
    if (left.count() <= 0) {
      throw std::runtime_error("the process ran past its time limit: " +
                               result_.errors);
    }
    std::array<pollfd, 3> waits = {
        {{output_, POLLIN, 0}, {errors_, POLLIN, 0}, {input_, POLLOUT, 0}}};
    ::poll(waits.data(), waits.size(), static_cast<int>(left.count()));
    if (waits[0].revents != 0) {
      drain(output_, result_.output);
    }
    if (waits[1].revents != 0) {
      drain(errors_, result_.errors);
    }
    if (waits[2].revents != 0) {
      ssize_t count = ::write(
          input_, input_text_.data() + written_, input_text_.size() - written_);
      if (count > 0) {
        written_ += static_cast<std::size_t>(count);
      }
      if (written_ == input_text_.size() ||
          (count < 0 && errno != EINTR && errno != EAGAIN)) {
        close_pipe(input_);
      }
    }
  }
  return result_.output.size() > before;
}

std::string Process::read_some() {
  std::size_t before = result_.output.size();
  pump(true);
  return result_.output.substr(before);
}

std::string Process::wait_for(const std::string& text) {
  std::size_t from = waited_for_;
  std::size_t at;
  while ((at = result_.output.find(text, from)) == std::string::npos) {
    if (!pump(true)) {
      throw std::runtime_error("the output ended without \"" + text +
                               "\": " + result_.output);
    }
  }
  waited_for_ = at + text.size();
  return result_.output.substr(from, waited_for_ - from);
}

void Process::type(const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    ssize_t count = ::write(terminal_, text.data() + done, text.size() - done);
    if (count < 0 && errno != EINTR) {
      throw std::runtime_error("the terminal takes no input");
    }
    done += count > 0 ? static_cast<std::size_t>(count) : 0;
  }
}

ProcessResult Process::finish() {
  pump(false);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  result_.exit_code =
      WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result_;
}

ProcessResult run_process(const std::vector<std::string>& command,
                          const ProcessOptions& options) {
  return Process(command, options).finish();
}

}  // namespace mlxlm
