// Where the library's own code writes notes and warnings.
#pragma once

#include <string_view>

#include <mlxlm/error.h>

namespace mlxlm {

void log_info(std::string_view text);
void log_warning(std::string_view text);

}  // namespace mlxlm
