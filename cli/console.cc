#include "cli/console.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <unistd.h>

#include <mlxlm/error.h>

#include "cli/interrupt.h"
#include "ranks/ranks.h"

namespace mlxlm::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kClearLine = "\r\033[K";
constexpr auto kRedrawInterval = std::chrono::milliseconds(100);

std::atomic<bool> progress_shown{false};
std::atomic<int> own_rank{0};

// Progress lines come from one thread at a time.
Clock::time_point last_drawn;

bool has_terminal() {
  static const bool terminal = [] {
    const char* term = std::getenv("TERM");
    return ::isatty(STDERR_FILENO) == 1 && term != nullptr &&
           std::strcmp(term, "dumb") != 0;
  }();
  return terminal;
}

// Writes all of it; the errno of the first fault, else 0.
int write_all(int descriptor, std::string_view text, bool stop_on_interrupt) {
  while (!text.empty()) {
    ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno != EINTR) {
      return errno;
    } else if (stop_on_interrupt && interrupted()) {
      throw Interrupted();
    }
  }
  return 0;
}

void print_message(std::string_view kind, std::string_view message) {
  clear_progress();
  std::string line = "mlx-lm: ";
  line.append(kind).append(message).append("\n");
  write_all(STDERR_FILENO, line, false);
}

std::string human_bytes(std::uint64_t bytes) {
  char text[32];
  std::snprintf(
      text, sizeof(text), "%.1f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

}  // namespace

void print(std::string_view text) {
  if (text.empty() || own_rank > 0) {
    return;
  }
  clear_progress();
  int fault = write_all(STDOUT_FILENO, text, true);
  if (fault == EPIPE) {
    throw OutputClosed();
  }
  if (fault != 0) {
    throw Error(ErrorKind::file,
                std::string("cannot write to standard output: ") +
                    std::strerror(fault));
  }
}

void print_error(std::string_view message) {
  const int rank = own_rank;
  print_message(rank > 0 ? "rank " + std::to_string(rank) + ": error: "
                         : std::string("error: "),
                message);
}

void print_warning(std::string_view message) {
  if (own_rank == 0) print_message("warning: ", message);
}

void print_note(std::string_view message) {
  if (own_rank == 0) print_message("note: ", message);
}

void speak_as_rank(int rank) { own_rank = rank; }

namespace {

std::string read_to_end() {
  std::string text;
  std::vector<char> block(1 << 16);
  while (true) {
    ssize_t count = ::read(STDIN_FILENO, block.data(), block.size());
    if (count > 0) {
      text.append(block.data(), static_cast<std::size_t>(count));
    } else if (count == 0) {
      break;
    } else if (errno != EINTR) {
      throw Error(
          ErrorKind::file,
          std::string("cannot read standard input: ") + std::strerror(errno));
    }
  }
  return text;
}

}  // namespace

std::string read_standard_input() {
  const auto& ranks = Ranks::all();
  const auto text = ranks.share(ranks.rank() == 0 ? read_to_end() : "");
  std::string lines;
  lines.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      lines += text[i];
    } else if (i + 1 == text.size() || text[i + 1] != '\n') {
      lines += '\n';
    }
  }
  return lines;
}

void show_progress(const Progress& progress) {
  if (!has_terminal() || own_rank > 0) {
    return;
  }
  bool ended = progress.total != 0 && progress.done >= progress.total;
  if (ended) {
    clear_progress();
    return;
  }
  Clock::time_point now = Clock::now();
  if (now - last_drawn < kRedrawInterval) {
    return;
  }
  last_drawn = now;
  std::string line(kClearLine);
  line.append(progress.what).append("  ");
  // Large numbers are bytes; tokens and tensors are counted one by one.
  bool bytes = progress.total > 10'000'000 || progress.total == 0;
  auto amount = [&](std::uint64_t n) {
    return bytes ? human_bytes(n) : std::to_string(n);
  };
  line += amount(progress.done);
  if (progress.total != 0) {
    char share[16];
    std::snprintf(share,
                  sizeof(share),
                  " (%.0f %%)",
                  100.0 * static_cast<double>(progress.done) /
                      static_cast<double>(progress.total));
    line += " of " + amount(progress.total) + share;
  }
  progress_shown = true;
  write_all(STDERR_FILENO, line, false);
}

void clear_progress() {
  if (progress_shown.exchange(false)) {
    write_all(STDERR_FILENO, kClearLine, false);
  }
}

void end_line_on_terminal() {
  if (::isatty(STDOUT_FILENO) == 1) {
    write_all(STDOUT_FILENO, "\n", false);
  }
}

void clear_progress_in_handler() {
  if (progress_shown.exchange(false)) {
    [[maybe_unused]] ssize_t ignored =
        ::write(STDERR_FILENO, kClearLine.data(), kClearLine.size());
  }
}

}  // namespace mlxlm::cli
