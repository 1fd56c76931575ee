// The three standard streams.
//
// Answers go to standard output, everything else to standard error; progress
// is shown on terminals only.
#pragma once

#include <string>
#include <string_view>

#include <mlxlm/error.h>

namespace mlxlm::cli {

// Standard output is a pipe that nobody reads any more.
class OutputClosed {};

// Writes through, without a buffer. Throws OutputClosed, Error{file}, or
// Interrupted if Ctrl-C came while the reader was slow.
void print(std::string_view text);

// "mlx-lm: error: ..." and the like on standard error; faults are ignored.
void print_error(std::string_view message);
void print_warning(std::string_view message);
void print_note(std::string_view message);

// Of several ranks only rank 0 prints answers, notes and warnings; the others'
// errors say whose they are.
void speak_as_rank(int rank);

// Standard input, of several ranks that of rank 0, as text to its end, with
// line ends as Python reads them.
std::string read_standard_input();

// Draws or replaces the line of progress, a few times a second; "done" ends
// it. Does nothing unless standard error is a terminal.
void show_progress(const Progress& progress);
void clear_progress();

// Leaves a terminal's cursor at the start of a line.
void end_line_on_terminal();

// clear_progress(), callable in a signal handler.
void clear_progress_in_handler();

}  // namespace mlxlm::cli
