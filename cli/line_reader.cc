#include "cli/line_reader.h"

#include <cstdio>
#include <iostream>

#include <unistd.h>

#include "cli/terminal_reader.h"

namespace mlxlm::cli {
namespace {

constexpr char kPrompt[] = "> ";
constexpr char kContinued[] = ". ";
constexpr std::string_view kQuotes = "\"\"\"";

class PlainReader : public LineReader {
 public:
  bool interactive() const override { return false; }

  std::optional<std::string> read(const std::string&,
                                  const std::string&) override {
    std::string line;
    if (!std::getline(std::cin, line)) {
      return std::nullopt;
    }
    if (line.ends_with('\r')) {
      line.pop_back();
    }
    return line;
  }
};

// The lines after the opening quotes, up to the closing ones or the end.
std::string read_quoted(LineReader& reader, std::string text) {
  while (!text.ends_with(kQuotes)) {
    auto line = reader.read(kContinued);
    if (!line || reader.gave_up()) {
      return line ? "" : text;
    }
    text += (text.empty() ? "" : "\n") + *line;
  }
  text.resize(text.size() - kQuotes.size());
  while (text.ends_with('\n')) {
    text.pop_back();
  }
  return text;
}

}  // namespace

std::unique_ptr<LineReader> make_line_reader(const std::string& history_file) {
  bool at_terminal =
      ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1;
  if (auto reader =
          at_terminal ? make_terminal_reader(history_file) : nullptr) {
    return reader;
  }
  return std::make_unique<PlainReader>();
}

std::optional<std::string> read_message(LineReader& reader,
                                        const std::string& text) {
  auto line = reader.read(kPrompt, text);
  if (!line) {
    return line;
  }
  if (line->starts_with(kQuotes)) {
    return read_quoted(reader, line->substr(kQuotes.size()));
  }
  std::string message;
  while (line && line->ends_with('\\')) {
    line->pop_back();
    message += *line + '\n';
    line = reader.read(kContinued);
    if (reader.gave_up()) {
      return "";
    }
  }
  return message + line.value_or("");
}

}  // namespace mlxlm::cli
