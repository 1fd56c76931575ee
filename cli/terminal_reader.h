// Lines from a terminal, through libedit.
#pragma once

#include <memory>
#include <string>

#include "cli/line_reader.h"

namespace mlxlm::cli {

// Null where this was built without libedit, or it can't work here.
std::unique_ptr<LineReader> make_terminal_reader(
    const std::string& history_file);

}  // namespace mlxlm::cli
