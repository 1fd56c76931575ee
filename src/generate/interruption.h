// Cancellation and deadlines, looked at between chunks and steps.
#pragma once

#include <string>

#include <mlxlm/generate.h>

namespace mlxlm {

// "cancelled", "deadline", or "" while the work may go on.
std::string interruption_of(const GenerateOptions& options);

// Throws Error{cancelled} if there is one.
void check_interruption(const GenerateOptions& options);

}  // namespace mlxlm
