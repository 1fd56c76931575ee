#include "generate/interruption.h"

namespace mlxlm {

std::string interruption_of(const GenerateOptions& options) {
  if (options.cancel.cancelled()) {
    return "cancelled";
  }
  if (options.deadline &&
      std::chrono::steady_clock::now() >= *options.deadline) {
    return "deadline";
  }
  return "";
}

void check_interruption(const GenerateOptions& options) {
  std::string interruption = interruption_of(options);
  if (interruption == "cancelled") {
    throw Error(ErrorKind::cancelled, "generation was cancelled");
  }
  if (interruption == "deadline") {
    throw Error(ErrorKind::cancelled, "generation passed its deadline");
  }
}

}  // namespace mlxlm
