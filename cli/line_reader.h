// Lines from the user: edited at a terminal, or as they come from a pipe.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace mlxlm::cli {

class LineReader {
 public:
  virtual ~LineReader() = default;

  // Whether a person sits there, who sees prompts and may try again.
  virtual bool interactive() const = 0;

  // The next line without its end; none at the end of input (Ctrl-D). `text`
  // stands there to be edited. Ctrl-C gives an empty line up: that is ""
  // with gave_up() true.
  virtual std::optional<std::string> read(const std::string& prompt,
                                          const std::string& text = "") = 0;
  virtual bool gave_up() const { return false; }
};

// Editing and history (kept in `history_file`; "" for none) if standard input
// and output are terminals, else plain lines.
std::unique_ptr<LineReader> make_line_reader(const std::string& history_file);

// A message, which is one line, or several: a line that ends with "\" goes on
// in the next, and """ begins and ends as many lines as one likes.
std::optional<std::string> read_message(LineReader& reader,
                                        const std::string& text = "");

}  // namespace mlxlm::cli
