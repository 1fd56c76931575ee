// Checks of option values, with messages that name option, value and range.
#pragma once

#include <string_view>

namespace mlxlm {

// Throws Error{argument} unless minimum <= value <= maximum; NaN never passes,
// infinities pass as no limit only.
void check_range(std::string_view option,
                 double value,
                 double minimum,
                 double maximum);

}  // namespace mlxlm
