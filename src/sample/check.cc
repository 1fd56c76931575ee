#include "sample/check.h"

#include <cmath>
#include <limits>
#include <sstream>
#include <string>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

std::string range_text(double minimum, double maximum) {
  std::ostringstream out;
  if (std::isfinite(minimum) && std::isfinite(maximum)) {
    out << "in [" << minimum << ", " << maximum << "]";
  } else if (std::isfinite(minimum)) {
    out << "a finite number of at least " << minimum;
  } else {
    out << "a finite number";
  }
  return out.str();
}

}  // namespace

void check_range(std::string_view option,
                 double value,
                 double minimum,
                 double maximum) {
  if (std::isfinite(value) && value >= minimum && value <= maximum) {
    return;
  }
  std::ostringstream message;
  message << option << " must be " << range_text(minimum, maximum)
          << ", but is " << value;
  throw Error(ErrorKind::argument, message.str());
}

}  // namespace mlxlm
